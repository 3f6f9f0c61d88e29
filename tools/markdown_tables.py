"""Tables in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table, without a line end after its last row.

    Args:
        head: The names of the columns.
        rows: The cells of each row, as they are printed.
    """
    lines = [_line(head), "|" + " --- |" * len(head), *map(_line, rows)]
    return "\n".join(lines)


def _line(cells):
    return f"| {' | '.join(map(str, cells))} |"
