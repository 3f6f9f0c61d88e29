"""What one process derives from the data, and all read: files."""

import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable

from trainers import files, launch

SECONDS = 3600.0  # That the other ranks wait.


def made_once(
    path: pathlib.Path, make: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """Returns `path`, a directory that rank 0 has filled.

    The other ranks of a Horovod run wait for it. It comes into being by a
    rename: where it is, it is whole.

    Args:
        path: The directory.
        make: Fills an empty directory.

    Raises:
        SystemExit: It cannot be written, or did not come within `SECONDS`.
    """
    if path.is_dir():
        return path
    if launch.rank() > 0:
        _wait(path)
        return path
    try:
        _make(path, make)
    except OSError as error:
        if error.errno in files.TOO_MANY_FILES:
            raise
        raise SystemExit(
            f"{path}: cannot be written ({error.strerror or error}); make "
            "room, or give another directory with --text_dir"
        ) from error
    return path


def _make(path, make):
    """Makes it beside its place and moves it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        make(pathlib.Path(work))
        os.chmod(work, 0o755)
        try:
            os.rename(work, path)
        except OSError:  # Another run has made it in the meantime.
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _wait(path):
    end = time.monotonic() + SECONDS
    while not path.is_dir():
        if time.monotonic() > end:
            raise SystemExit(
                f"{path}: rank 0 has not made it within {SECONDS:.0f} s; the "
                "ranks must share the directory: give one with --text_dir"
            )
        time.sleep(0.1)
