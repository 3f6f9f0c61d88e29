"""What `Health` leaves in its directory: records, a page, event files."""

import contextlib
import json
import math
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

# What the page reads of all records: numbers, and those that may be None.
_NUMBERS = "update", "updates", "clipped", "health_seconds"
_PERHAPS = "epoch", "damping", "learning_rate", "kl_clip", "clip"

Record = dict[str, Any]


class LogError(ValueError):
    """A file of `Health` cannot be read or written; the message says why."""


class HealthLog:
    """The files of one rank.

    Every method may raise `LogError`.

    Args:
        directory: Where they go; it is made.
        tensorboard: Whether there are logs for TensorBoard.
    """

    def __init__(self, directory: pathlib.Path, tensorboard: bool):
        self._directory = directory
        self._writer = None
        with _writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
        if tensorboard:
            path = directory / EVENTS
            with _writing(path):
                self._writer = tf.summary.create_file_writer(str(path))
        self._at, self._seconds = -float("inf"), 0.0

    def begin(self, update: int) -> list[Record]:
        """Returns the records up to an update, all that the file holds then.

        Args:
            update: The one that training begins with; 0 begins the file anew.

        Returns:
            The records, oldest first, `page.thinned`; the file has all of them.
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
        path = self._directory / RECORDS
        with _writing(path):
            _append(path, json.dumps(record, allow_nan=False) + "\n")
        if self._writer is None:
            return
        with (
            _writing(self._directory / EVENTS),
            self._writer.as_default(step=record["update"]),
        ):
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
            with _writing(self._directory / EVENTS):
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
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise LogError(f"{path} cannot be read ({error.strerror})") from error
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            text = line.decode()
            record = page.thinned(json.loads(text, parse_constant=float))
            _check(record)
        except (
            ValueError, TypeError, KeyError, AttributeError, RecursionError,
            OverflowError,
        ) as error:  # fmt: skip
            raise LogError(
                f"line {number} of {path} is no record of it: move the file "
                "away, or give another directory"
            ) from error
        yield text, record


def _check(record: Record) -> None:
    """Raises an error where the page cannot be made of a record."""
    so_far, layers = record["so_far"], record["layers"].values()
    known = [record[name] for name in _NUMBERS]
    known += [so_far["updates"], so_far["clipped"]]
    perhaps = [record[name] for name in _PERHAPS]
    perhaps += record["metrics"].values()
    perhaps += [number for layer in layers for number in layer.values()]
    for count, seconds in record["stages"].values():
        known += [count, seconds]
    numbers = known + [number for number in perhaps if number is not None]
    for number in numbers:
        if isinstance(number, bool) or not math.isfinite(number):
            raise ValueError(f"{number} is no number")
    if min(known) < 0:
        raise ValueError(f"{min(known)} is less than 0")


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    """Raises `LogError` where what is written within it cannot be."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LogError(
            f"{path} cannot be written ({reason}): make room, or give another "
            "directory"
        ) from error


def _append(path: pathlib.Path, line: str) -> None:
    """Adds a line to a file, or leaves it as it was."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise


def _write(path: pathlib.Path, text: str) -> None:
    """Writes a file that appears under its name when it is complete."""
    part = path.with_name("part." + path.name)
    with _writing(path):
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
