"""A file of JSON lines that one command adds to, and goes on from if killed."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from trainers import files


class Lines:
    """Records in a file, each a line.

    Args:
        path: Of the file; it and its directory are made where there is none.
        check: Raises ValueError where a record is of another form.

    Raises:
        ValueError: Another command adds to it, or a line is damaged.

    Attributes:
        records: All of them; `add` appends one.
    """

    def __init__(self, path: pathlib.Path, check: Callable[[Any], None]):
        directory = path.parent
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = files.taken(path)
        except BlockingIOError as error:
            raise ValueError(f"{directory}: another command runs it") from error
        except OSError as error:
            raise ValueError(f"{directory}: {error.strerror}") from error
        self.records = read(path, check)
        # What a kill has left of a line goes.
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)

    def add(self, record: dict) -> None:
        """Writes a record.

        Raises:
            SystemExit: It cannot be written. What is left of it in the file is
                a line that is cut short, which the next command drops.
        """
        left = (json.dumps(record) + "\n").encode()
        try:
            while left:
                left = left[os.write(self._file.fileno(), left) :]
        except OSError as error:
            raise SystemExit(
                f"{self._file.name} cannot be written ({error.strerror}): make "
                "room; the same command goes on from the lines that it holds"
            ) from error
        self.records.append(record)


def read(path: pathlib.Path, check: Callable[[Any], None]) -> list[dict]:
    """Returns the records of a file, without a line that is cut short.

    Args:
        path: Of the file; where there is none, there is no record.
        check: Raises ValueError where a record is of another form.

    Raises:
        ValueError: A line is damaged, or the file cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line.decode())
            check(record)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}: line {number} is damaged ({error}); remove it, and "
                "what it says is measured again"
            ) from error
        found.append(record)
    return found
