"""The directory of a run: what is in it, and whose it is.

configuration.json   all that the run depends on
summary.json         what came of it, of each optimizer
log.jsonl, log.csv   a record for each evaluation
curves.png           the records as curves; with --compare, loss.csv, loss.png
model.keras          the model at the end
checkpoints/         what --resume goes on from
health.*             with --health
compare_<name>/      the log and the curves of an optimizer that is compared
"""

import contextlib
import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from trainers import files
from trainers.refusals import OPTIMIZERS

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


def make_model_dir(
    model_dir: str | None, name: str, overwrite: bool = False
) -> pathlib.Path:
    """Returns a directory to write to; exits if it holds another run.

    Args:
        model_dir: As --model_dir; None makes a fresh one in ./runs.
        name: What the fresh one is called; a number follows if it is taken.
        overwrite: Whether another run may be there, for `clear` to remove.
    """
    if model_dir is None:
        return _fresh(pathlib.Path("runs"), name)
    path = pathlib.Path(model_dir)
    with _refusal(path):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    refuse_another(path, overwrite)
    return path


def refuse_another(path: pathlib.Path, overwrite: bool) -> None:
    """Exits where another run is in a directory, but for `overwrite`."""
    with _refusal(path):
        found = of_run(path)
    if found and not (path / CONFIGURATION).exists():
        raise SystemExit(
            f"--model_dir={path}: {found[0].name} is there, and no "
            f"{CONFIGURATION} of a run; give another directory"
        )
    if found and not overwrite:
        raise SystemExit(
            f"--model_dir={path}: {found[0].name} of another run is there; "
            "give another directory, --resume to go on with that run, or "
            "--overwrite to replace it"
        )


@contextlib.contextmanager
def locked(model_dir: pathlib.Path) -> Iterator[None]:
    """Within it no other job has the directory; exits where one has."""
    with _refusal(model_dir):
        try:
            file = files.taken(model_dir / LOCK)
        except BlockingIOError:
            raise SystemExit(
                f"--model_dir={model_dir}: another job runs in it; wait until "
                "it has ended, or give another directory"
            ) from None
    with file:
        yield


@contextlib.contextmanager
def claimed(run, ranks) -> Iterator[None]:
    """Within it --model_dir is this job's; all ranks exit where it cannot be.

    What was found there when the flags were checked may have changed since.
    """
    with contextlib.ExitStack() as stack:
        refusal = None
        try:
            if ranks.rank == 0:
                stack.enter_context(locked(run.model_dir))
                if run.config.resume:
                    resumed(run.model_dir, run.configuration())
                else:
                    refuse_another(run.model_dir, run.config.overwrite)
        except SystemExit as error:
            refusal = error.code
        refusal = ranks.broadcast_object(refusal)
        if refusal is not None:
            raise SystemExit(refusal)
        yield


def begin(run) -> None:
    """Makes the directory that of a run: another one there is removed."""
    clear(run.model_dir)
    compared = run.config.compare
    write_configuration(run.model_dir, run.configuration(), compared)


def clear(model_dir: pathlib.Path) -> None:
    """Removes the files of a run, and folders that are empty then.

    Nothing where no run was.
    """
    if not (model_dir / CONFIGURATION).exists():
        return
    found = of_run(model_dir)
    for file in reversed(found):  # Its configuration last: a kill may come.
        file.unlink()
    folders = {p for file in found for p in file.relative_to(model_dir).parents}
    for folder in sorted(folders - {pathlib.Path(".")}, reverse=True):
        with contextlib.suppress(OSError):  # Something else is there.
            (model_dir / folder).rmdir()


def make_folder(path: pathlib.Path) -> None:
    """Makes a folder of a run, or exits where it cannot be."""
    with _refusal(path):
        path.mkdir(exist_ok=True)


def _fresh(parent: pathlib.Path, name: str) -> pathlib.Path:
    for number in itertools.count(1):
        path = parent / (name if number == 1 else f"{name}_{number}")
        with _refusal(path), contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError  # There is always another number.


@contextlib.contextmanager
def _refusal(path: pathlib.Path):
    try:
        yield
    except OSError as error:
        if error.errno in files.TOO_MANY_FILES:
            raise  # Of which the directory is no cause.
        raise SystemExit(
            f"--model_dir={path}: cannot write there ({error.strerror}); "
            "give a directory that can be written to"
        ) from None


def read_configuration(model_dir: pathlib.Path) -> dict[str, Any]:
    """Returns the configuration of the run in a directory.

    Raises:
        OSError: There is none.
        ValueError: The file is not of the form.
    """
    saved = _saved(model_dir)
    saved.pop(COMPARE, None)
    return saved


def write_configuration(
    model_dir: pathlib.Path,
    configuration: dict[str, Any],
    compare: Sequence[str],
) -> None:
    """Writes what `read_configuration` reads.

    Args:
        model_dir: The directory of the run.
        configuration: That of the run.
        compare: The optimizers that it compares, for `clear`.
    """
    found = {**configuration, COMPARE: list(compare)}
    files.write_json(model_dir / CONFIGURATION, found)


def resumed(
    model_dir: str | pathlib.Path, configuration: dict[str, Any]
) -> pathlib.Path:
    """Returns the directory of a run to go on with.

    Args:
        model_dir: As --model_dir.
        configuration: That of the command line.

    Raises:
        SystemExit: There is no run in it, or one of another configuration.
    """
    path = pathlib.Path(model_dir)
    file = path / CONFIGURATION
    try:
        saved = read_configuration(path)
    except (FileNotFoundError, NotADirectoryError):
        raise SystemExit(
            f"--resume: --model_dir={path} has no {file.name}: there is no run "
            "to go on with; leave --resume out"
        ) from None
    except OSError as error:
        if error.errno in files.TOO_MANY_FILES:
            raise
        raise SystemExit(
            f"--resume: {file} cannot be read ({error.strerror}): make it "
            "readable, or give another directory"
        ) from None
    except ValueError:
        raise SystemExit(
            f"--resume: {file} is corrupt: give another directory"
        ) from None
    if (path / RECORDS).exists() and not any((path / CHECKPOINTS).glob("*")):
        raise SystemExit(
            f"--resume: {path} has the log of a run and no checkpoint: give "
            "--overwrite to begin anew, or another --model_dir"
        )
    if found := differences(configuration, saved):
        raise SystemExit(
            f"--resume: {path} holds a run of another configuration: "
            f"{'; '.join(found)}; give the same flags, or another --model_dir"
        )
    return path


def differences(
    configuration: dict[str, Any], saved: dict[str, Any]
) -> list[str]:
    """Returns in what a configuration is another than a saved one was.

    Args:
        configuration: That of the command line.
        saved: One that was written as JSON.
    """
    configuration = json.loads(json.dumps(files.plain(configuration)))
    return [
        f"{key} is {own.get(key)!r} now and was {other.get(key)!r}"
        for own, other in _levels(configuration, saved)
        for key in {**own, **other}
        if own.get(key) != other.get(key)
    ]


def _levels(own, other):
    """Returns the pairs of dictionaries to compare key by key."""
    own, other = dict(own), dict(other)
    return [(own.pop("settings", {}), other.pop("settings", {})), (own, other)]


def _saved(model_dir: pathlib.Path) -> dict[str, Any]:
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
    found = (file for p in _patterns(path) for file in sorted(path.glob(p)))
    return [file for file in found if file.is_file() or file.is_symlink()]


def _patterns(path) -> list[str]:
    """Returns what the files of the run in a directory are called.

    Where its configuration does not say of which optimizers it is, they may be
    those of all.
    """
    try:
        saved = _saved(path)
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
    path: pathlib.Path, optimizer: str, compare: Sequence[str]
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
