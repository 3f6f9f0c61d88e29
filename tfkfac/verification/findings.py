"""What `verify` has found, as a table."""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np

OK, NOTE, FAILED = "ok", "note", "FAILED"
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1  # The latter for half precision.


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check of one thing.

    Attributes:
        check: What was checked, such as "input factor".
        where: The path of the block, or what else it is of; "" for all.
        result: "ok", "FAILED", or "note": what is to be known, or could not be
            checked.
        figure: A relative error, or another number as text; "" for none.
        sentence: What was found and, if it failed, the mend.
    """

    check: str
    where: str
    result: str
    figure: float | str = ""
    sentence: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """What `tfkfac.verify` has found.

    Attributes:
        model: The name of the model.
        findings: All results, one for each check of each block.
        seconds: How long it took.
    """

    model: str
    findings: Sequence[Finding]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    @property
    def failed(self) -> list[Finding]:
        """What failed."""
        return [f for f in self.findings if f.result == FAILED]

    def __str__(self) -> str:
        head: tuple[str, ...] = "check", "result", "figure", "what it says"
        rows = [head]
        for check in dict.fromkeys(f.check for f in self.findings):
            of_check = [f for f in self.findings if f.check == check]
            rows += _rows(check, of_check)
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, [*widths, 0]))
            for row in rows
        ]
        lines.insert(1, "  ".join("-" * w for w in [*widths, 12]))
        return "\n".join([*(line.rstrip() for line in lines), self._last()])

    def _last(self) -> str:
        failed = len(self.failed)
        counted = sum(f.result != NOTE for f in self.findings)
        what = f"all {counted} checks passed"
        if failed:
            what = f"{failed} of {counted} checks FAILED"
        return f"{self.model}: {what} in {self.seconds:.1f} s."


def note(check: str, where: str, sentence: str) -> Finding:
    """Returns what is to be known, or could not be checked."""
    return Finding(check, where, NOTE, "", sentence)


def failed(check: str, where: str, sentence: str) -> Finding:
    """Returns what is wrong, where there is no figure of it."""
    return Finding(check, where, FAILED, "", sentence)


def judged(
    check: str,
    where: str,
    error: float,
    sentence: str | Callable[[], str],
    *,
    half: bool = False,
    bound: float | None = None,
) -> Finding:
    """Returns whether an error is within its bound.

    Args:
        check, where: As of `Finding`.
        error: A relative error.
        sentence: What to say if it is not, or a function that returns it.
        half: Whether there is half precision in it.
        bound: The bound; None for that of all checks.
    """
    if bound is None:
        bound = HALF_TOLERANCE if half else TOLERANCE
    if error <= bound:
        return Finding(check, where, OK, float(error))
    text = sentence if isinstance(sentence, str) else sentence()
    return Finding(check, where, FAILED, float(error), text)


def relative(x, y) -> float:
    """Returns |x - y| / |y| over arrays in lists; 0 where both are 0."""
    pairs = list(zip(x, y))
    error = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in pairs))
    size = np.sqrt(sum(np.sum(b**2) for _, b in pairs))
    return float(error / size) if size else float(error > 0)


def of_model(
    model: keras.Model, findings: Sequence[Finding], several: bool
) -> list[Finding]:
    """Returns findings under the name of their model, if there are several."""
    if not several:
        return list(findings)
    return [
        dataclasses.replace(
            f, where="/".join([model.name, *([f.where] if f.where else [])])
        )
        for f in findings
    ]


def _rows(check: str, findings: Sequence[Finding]) -> list[tuple[str, ...]]:
    """Returns a row for all that passed, and one for each that did not."""
    passed = [f for f in findings if f.result == OK]
    measured = [f for f in passed if isinstance(f.figure, float)]
    rows = [_row(check, f) for f in passed if f not in measured]
    if measured:
        worst = max(measured, key=lambda f: _number(f.figure))
        text = f"{len(measured)} compared, the worst is {worst.where}"
        rows.append((check, OK, _text(worst.figure), text))
    noted = [f for f in findings if f.result != OK]
    by_sentence: dict[tuple, list[Finding]] = {}
    for f in noted:
        key = f.result, f.sentence
        by_sentence.setdefault(key, []).append(f)
    for group in by_sentence.values():
        where = ", ".join(f.where for f in group if f.where)
        worst = max(group, key=lambda f: _number(f.figure))
        rows.append(_row(check, dataclasses.replace(worst, where=where)))
    return rows


def _row(check: str, finding: Finding) -> tuple[str, ...]:
    parts = [x for x in (finding.where, finding.sentence) if x]
    return check, finding.result, _text(finding.figure), ": ".join(parts)


def _number(figure: float | str) -> float:
    return figure if isinstance(figure, float) else -1.0


def _text(figure: float | str) -> str:
    return f"{figure:.1e}" if isinstance(figure, float) else figure
