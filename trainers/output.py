"""What a run leaves behind: its directory and whole files in it."""

import contextlib
import csv
import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator

SUMMARY, LOG = "summary.json", "log.csv"
_OF_A_RUN = (
    SUMMARY,
    "log*.csv",
    "loss.csv",
    "loss.png",
    "model.keras",
)


def make_model_dir(
    model_dir: str | None, name: str, overwrite: bool = False
) -> pathlib.Path:
    """Returns a directory to write to; exits if it holds another run.

    Args:
        model_dir: As --model_dir; None makes a fresh one in ./runs.
        name: What the fresh one is called; a number follows if it is taken.
        overwrite: Whether the files of another run are removed.
    """
    if model_dir is None:
        return _fresh(pathlib.Path("runs"), name)
    path = pathlib.Path(model_dir)
    with _refusal(path):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
        found = [file for p in _OF_A_RUN for file in path.glob(p)]
    if found and not overwrite:
        raise SystemExit(
            f"--model_dir={path}: {found[0].name} of another run is there; "
            "give another directory, or --overwrite to replace that run"
        )
    for file in found:
        file.unlink()
    return path


def _fresh(parent: pathlib.Path, name: str) -> pathlib.Path:
    for number in itertools.count(1):
        path = parent / (name if number == 1 else f"{name}_{number}")
        with _refusal(path), contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path


@contextlib.contextmanager
def _refusal(path: pathlib.Path):
    try:
        yield
    except OSError as error:
        raise SystemExit(
            f"--model_dir={path}: cannot write there ({error.strerror}); "
            "give a directory that can be written to"
        ) from None


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a path to write to, which becomes `path` when all is written."""
    partial = path.with_name(f"partial_{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: dict) -> None:
    with whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_losses(path: pathlib.Path, losses: dict[str, list[float]]) -> None:
    """Writes the training loss of each step, one column per optimizer."""
    with whole(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *losses])
        writer.writerows(
            [step, *row] for step, row in enumerate(zip(*losses.values()))
        )
