"""A lock that one process holds, and that the system releases with it."""

import fcntl
import pathlib
import sys
from typing import TextIO


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
