"""A file of JSON lines that one command adds to, and goes on from if killed."""

import fcntl
import json
import pathlib


class Lines:
    """Records in a file, each a line.

    Args:
        path: Of the file; it and its directory are made where there is none.

    Raises:
        ValueError: Another command adds to it, or a line is damaged.

    Attributes:
        records: All of them; `add` appends one.
    """

    def __init__(self, path: pathlib.Path):
        directory = path.parent
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{directory}: another command runs it") from error
        except OSError as error:
            raise ValueError(f"{directory}: {error.strerror}") from error
        self.records = read(path)
        # What a kill has left of a line.
        whole = "".join(json.dumps(r) + "\n" for r in self.records)
        self._file.seek(0)
        if self._file.read() != whole:
            self._file.truncate(0)
            self._file.write(whole)
            self._file.flush()

    def add(self, record: dict) -> None:
        """Writes a record."""
        self.records.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


def read(path: pathlib.Path) -> list[dict]:
    """Returns the records of a file, without a line that is cut short.

    Raises:
        ValueError: A line is damaged.
    """
    if not path.exists():
        return []
    found = []
    lines = path.read_text().split("\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is damaged") from error
    return found
