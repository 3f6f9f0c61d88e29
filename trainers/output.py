"""What a run leaves behind: its directory and whole files in it."""

import contextlib
import csv
import errno
import itertools
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from trainers import locks, run_files
from trainers.run_files import (
    CHECKPOINTS,
    COMPARE,
    CONFIGURATION,
    LOCK,
    LOG,
    RECORDS,
)

TOO_MANY_FILES = errno.EMFILE, errno.ENFILE  # Of the process, of the system.


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
    """Exits where the files of another run are in a directory.

    Args:
        path: The directory.
        overwrite: As for `make_model_dir`.
    """
    with _refusal(path):
        found = run_files.of_run(path)
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
            file = locks.taken(model_dir / LOCK)
        except BlockingIOError:
            raise SystemExit(
                f"--model_dir={model_dir}: another job runs in it; wait until "
                "it has ended, or give another directory"
            ) from None
    with file:
        yield


def clear(model_dir: pathlib.Path) -> None:
    """Removes the files of a run, and folders that are empty then.

    Nothing where no run was.
    """
    if not (model_dir / CONFIGURATION).exists():
        return
    found = run_files.of_run(model_dir)
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


@contextlib.contextmanager
def _refusal(path: pathlib.Path):
    try:
        yield
    except OSError as error:
        if error.errno in TOO_MANY_FILES:
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
    saved = run_files.configuration(model_dir)
    saved.pop(COMPARE, None)
    return saved


def write_configuration(
    model_dir: pathlib.Path, configuration: dict[str, Any], compare: list[str]
) -> None:
    """Writes what `read_configuration` reads.

    Args:
        model_dir: The directory of the run.
        configuration: That of the run.
        compare: The optimizers that it compares, for `clear`.
    """
    found = {**configuration, COMPARE: compare}
    write_json(model_dir / CONFIGURATION, found)


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
        if error.errno in TOO_MANY_FILES:
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
    configuration = json.loads(json.dumps(plain(configuration)))
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


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a path to write to, which becomes `path` when all is written."""
    partial = path.with_name(f"partial_{path.name}")
    if partial.is_dir():
        raise SystemExit(
            f"{partial} is a folder where a file is to be written: move it away"
        )
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        limit = error.errno in TOO_MANY_FILES
        mend = "; allow more, as by ulimit -n 1024" if limit else ""
        raise SystemExit(
            f"{path} cannot be written ({error.strerror or error}); what was "
            f"there before is whole{mend}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Returns a value for JSON, which has no infinity: "inf", "nan"."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if finite else str(value)


def write_json(path: pathlib.Path, value: dict) -> None:
    with whole(path) as partial:
        text = json.dumps(plain(value), indent=2, allow_nan=False)
        partial.write_text(text + "\n")


def write_records(
    directory: pathlib.Path, records: Sequence[dict[str, float]]
) -> None:
    """Writes the log: a line of JSON for each record, and a table."""
    with whole(directory / RECORDS) as partial:
        lines = [json.dumps(plain(record)) + "\n" for record in records]
        partial.write_text("".join(lines))
    with whole(directory / LOG) as partial, partial.open("w") as file:
        columns = list(records[0]) if records else []
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def write_losses(path: pathlib.Path, losses: dict[str, list[float]]) -> None:
    """Writes the training loss of each step, one column per optimizer."""
    with whole(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *losses])
        writer.writerows(
            [step, *row]
            for step, row in enumerate(itertools.zip_longest(*losses.values()))
        )
