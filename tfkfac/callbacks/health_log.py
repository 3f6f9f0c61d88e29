"""What `Health` leaves in its directory: records, a page, event files."""

import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfkfac.analysis import page
from tfkfac.analysis.findings import Finding

RECORDS, PAGE, EVENTS = "health.jsonl", "health.html", "tensorboard"
_PART = 0.005  # Of the time: what writing the page again may take.

Record = dict[str, Any]


class HealthLog:
    """The files of one rank.

    Args:
        directory: Where they go; it is made.
        tensorboard: Whether there are logs for TensorBoard.
    """

    def __init__(self, directory: pathlib.Path, tensorboard: bool):
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._writer = None
        if tensorboard:
            path = str(directory / EVENTS)
            self._writer = tf.summary.create_file_writer(path)
        self._at, self._seconds = -float("inf"), 0.0

    def begin(self, update: int) -> list[Record]:
        """Returns the records up to an update, all that the file holds then.

        Args:
            update: The one that training begins with; 0 begins the file anew.

        Returns:
            The records, oldest first, `page.thinned`; the file has all of them.

        Raises:
            ValueError: A line of the file is no record.
        """
        path = self._directory / RECORDS
        lines, found = [], []
        for line, record in _read(path) if update else ():
            if 0 < record["update"] <= update:
                lines.append(line + "\n")
                found.append(record)
        _write(path, "".join(lines))
        return found

    def add(self, record: Record, summary: Mapping[str, float]) -> None:
        """Adds a record to the file, and numbers to TensorBoard's logs."""
        with open(self._directory / RECORDS, "a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        if self._writer is None:
            return
        with self._writer.as_default(step=record["update"]):
            for name, value in {**summary, **_of_layers(record)}.items():
                if value is not None:
                    tf.summary.scalar(f"health/{name}", value)
        self._writer.flush()

    def write_page(
        self,
        records: Sequence[Record],
        found: Sequence[Finding],
        in_any_case: bool,
    ) -> None:
        """Writes the page.

        Args:
            records: All of them, at least one.
            found: What they call for.
            in_any_case: Whether to write it even where that would take more
                than half a percent of the time since it was written last.
        """
        start = time.perf_counter()
        if in_any_case or self._seconds <= _PART * (start - self._at):
            _write(self._directory / PAGE, page.page(records, found))
            self._at = time.perf_counter()
            self._seconds = self._at - start

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _of_layers(record: Record) -> dict[str, float | None]:
    """Returns what TensorBoard shows of the stages and layers, by name."""
    numbers = {
        f"seconds/{stage}": seconds / number
        for stage, (number, seconds) in record["stages"].items()
    }
    for path, layer in record["layers"].items():
        for name in ("age", "pi", "relative_damping", "rounding", "share"):
            numbers[f"{path}/{name}"] = layer[name]
        for factor, of_factor in layer["factors"].items():
            for name in ("condition", "movement"):
                numbers[f"{path}/{factor}/{name}"] = of_factor[name]
    return numbers


def _read(path: pathlib.Path) -> Iterator[tuple[str, Record]]:
    """Yields the lines of a file, but a last one that was cut off, each with
    its record, `page.thinned`."""
    text = path.read_text() if path.exists() else ""
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            record = page.thinned(json.loads(line))
            record["update"] > 0, record["so_far"]["updates"]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"Health: line {number} of {path} is no record of it: move the "
                "file away, or give another directory."
            ) from error
        yield line, record


def _write(path: pathlib.Path, text: str) -> None:
    """Writes a file that appears under its name when it is complete."""
    part = path.with_name("part." + path.name)
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
