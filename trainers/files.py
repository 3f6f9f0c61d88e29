"""Files that are whole or not there, and a lock that one process holds."""

import contextlib
import errno
import fcntl
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO

TOO_MANY_FILES = errno.EMFILE, errno.ENFILE  # Of the process, of the system.


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


def write_figure(path: pathlib.Path, figure: Any, dpi: int = 150) -> None:
    """Writes a picture of matplotlib, in the format that its name ends in."""
    with whole(path) as partial:
        figure.savefig(partial, dpi=dpi)


def taken(path: pathlib.Path) -> TextIO:
    """Opens a file to add to, and takes the one lock on it.

    The lock is released when the file is closed: at the latest when the process
    ends, however it does. Where the file system has no locks, as some of a
    network, a line on stderr says so.

    Raises:
        BlockingIOError: The lock is taken.
        OSError: The file cannot be opened.
    """
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError as error:
        print(
            f"{path}: this file system has no locks ({error.strerror}): see to "
            "it that no other command writes there",
            file=sys.stderr,
        )
    return file
