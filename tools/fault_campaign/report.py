"""What came of the faults: JSON lines, and a table in Markdown."""

import collections
import pathlib
import re
from collections.abc import Sequence

from tools.fault_campaign import faults


def counts(records: Sequence[dict]) -> dict[str, int]:
    """Returns how many faults had each outcome."""
    found = collections.Counter(record["outcome"] for record in records)
    return {name: found[name] for name in faults.OUTCOMES}


def table(records: Sequence[dict]) -> str:
    """Returns the counts by group, and a line for each fault, in Markdown."""
    groups = list(dict.fromkeys(_group(record) for record in records))
    lines = _row("Group", *faults.OUTCOMES)
    lines += _row("---", *["---:"] * len(faults.OUTCOMES))
    for group in groups:
        of_group = [r for r in records if _group(r) == group]
        lines += _row(group, *counts(of_group).values())
    lines += _row("all", *counts(records).values())
    lines += ["", *_row("Fault", "expected", "outcome", "s", "said")]
    lines += _row("---", "---", "---", "---:", "---")
    for record in records:
        lines += _row(
            record["name"],
            record["expected"],
            _marked(record["outcome"]),
            f"{record['seconds']:.1f}",
            _short(record["said"]),
        )
    return "\n".join(lines) + "\n"


def write(path: pathlib.Path, records: Sequence[dict]) -> None:
    """Writes the table, after what stands before it in the file."""
    before = "# Faults and what came of them\n\n"
    if path.exists():
        text = path.read_text(encoding="utf-8")
        before = re.split("^[|]", text, maxsplit=1, flags=re.MULTILINE)[0]
    path.write_text(before + table(records), encoding="utf-8")


def _group(record):
    return record["name"].partition("/")[0]


def _marked(outcome):
    return f"**{outcome}**" if outcome in faults.BAD else outcome


def _short(said):
    said = " ".join(re.sub(r"\x1b\[[\d;]*m", "", said).split())
    return _plain(said if len(said) <= 160 else said[:157] + "...")


def _plain(text):
    """Returns Markdown that shows a text as it is, but for `code`."""
    parts = re.split("(`[^`]*`)", text.replace("|", "\\|"))
    # An underscore within a word is none of emphasis.
    parts[::2] = [
        re.sub(r"[*<$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", part)
        for part in parts[::2]
    ]
    return "".join(parts)


def _row(*cells):
    return [f"| {' | '.join(map(str, cells))} |"]
