"""What the files of a run are called, and which of them are in a directory."""

import json
import os
import pathlib
from typing import Any

from trainers.flag_definitions import OPTIMIZERS

CONFIGURATION, SUMMARY = "configuration.json", "summary.json"
RECORDS, LOG, CURVES = "log.jsonl", "log.csv", "curves.png"
CHECKPOINTS, LOCK, EVENTS = "checkpoints", ".lock", "tensorboard"
CHECKPOINT = f"{CHECKPOINTS}/{'[0-9]' * 8}.keras"
COMPARE = "compare"  # In the configuration: no part of what a run is.
_OF_AN_OPTIMIZER = (
    RECORDS,
    LOG,
    CURVES,
    "health.html",
    "health.jsonl",
    "model.keras",
    CHECKPOINT,
    CHECKPOINT.replace("/", "/partial_"),
)
_OF_A_RUN = (
    CONFIGURATION,
    SUMMARY,
    *_OF_AN_OPTIMIZER,
    *(
        f"spectra/{name}"
        for name in ("spectra.json", "eigenvalues.png", "movement.png",
                     "noise.png", "measured.txt")
    ),
)  # fmt: skip


def folder_of(name: str) -> str:
    """Returns the folder of an optimizer that a run compares."""
    return f"compare_{name}"


def configuration(model_dir: pathlib.Path) -> dict[str, Any]:
    """Returns the configuration in a directory, and what it compares.

    Raises:
        OSError: There is none.
        ValueError: The file is not of the form.
    """
    try:
        saved = json.loads((model_dir / CONFIGURATION).read_text())
    except RecursionError:
        saved = None
    if not isinstance(saved, dict) or not isinstance(
        saved.get("settings", {}), dict
    ):
        raise ValueError("it is no configuration")
    return saved


def of_run(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of the run in a directory, and those alone."""
    files = (file for p in _patterns(path) for file in sorted(path.glob(p)))
    return [file for file in files if file.is_file() or file.is_symlink()]


def _patterns(path) -> list[str]:
    """Returns what the files of the run in a directory are called.

    Where its configuration does not say of which optimizers it is, they may be
    those of all.
    """
    try:
        saved = configuration(path)
    except (OSError, ValueError):
        saved = {}
    compared, own = saved.get(COMPARE), saved.get("optimizer")
    if not isinstance(compared, list):
        compared = list(OPTIMIZERS)
    compared = [name for name in OPTIMIZERS if name in compared]
    logged = [name for name in OPTIMIZERS if own in (name, None)]
    found = list(_OF_A_RUN)
    if compared:
        found += ["loss.csv", "loss.png"]
    for name in compared:
        found += [f"{folder_of(name)}/{file}" for file in _OF_AN_OPTIMIZER]
    for name in {*logged, *compared}:
        found.append(f"{EVENTS}/{name}/events.out.tfevents.*")
    return found


def refuse_files(
    path: pathlib.Path, optimizer: str, compare: list[str]
) -> None:
    """Exits where something else is in the place of a folder of a run.

    Args:
        path: The directory of the run.
        optimizer: Of the run.
        compare: The optimizers that it compares.
    """
    for name in (
        CHECKPOINTS,
        *map(folder_of, compare),
        EVENTS,
        *(f"{EVENTS}/{name}" for name in (optimizer, *compare)),
    ):
        folder = path / name
        if os.path.lexists(folder) and not folder.is_dir():
            raise SystemExit(
                f"--model_dir={path}: {name} is a file where the run needs a "
                "folder: move it away, or give another directory"
            )
