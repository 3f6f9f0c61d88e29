"""Tables of the page on K-FAC's health: updates by kind, and layers."""

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tfkfac.analysis.curves import number
from tfkfac.analysis.findings import Finding

Record = Mapping[str, Any]

_STAGES = {
    "first": "first, with building the graph",
    "plain": "nothing due",
    "factors": "factors due",
    "inverses": "inverses due",
    "skipped": "skipped",
    "several at once": "several at once",
}


def stages(records: Sequence[Record]) -> str:
    """Returns how many updates of each kind there were, and their times."""
    sums = {stage: [0, 0.0] for stage in _STAGES}
    for r in records:
        for stage, (count, seconds) in r["stages"].items():
            sums[stage][0] += count
            sums[stage][1] += seconds
    first = sums["first"][1]
    total = sum(seconds for _, seconds in sums.values()) - first
    rows = []
    for stage, (count, seconds) in sums.items():
        part = None if stage == "first" or not total else seconds / total
        if count:
            times = _time(seconds / count), _time(seconds), percent(part)
            cells = _cells([_STAGES[stage], f"{count:,}", *times])
            rows.append(f"<tr>{cells}</tr>")
    return _table(
        ("updates with", "number", "each", "together", "of all later ones"),
        rows,
    )


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.{0 if seconds >= 100 else 1}f} s"


def layers(last: Record, found: Sequence[Finding]) -> str:
    """Returns a row of each factor; what is of the layer stands once."""
    warned = {p for x in found if x.is_warning for p in x.layers}
    rows = []
    for path, layer in last["layers"].items():
        span = f' rowspan="{len(layer["factors"])}"'
        bad = " bad" * (path in warned)
        start = (
            f'<td class="name{bad}"{span}>{html.escape(path)}</td>'
            + _cells((show(layer) for show in _OF_LAYER.values()), span)
        )
        row = '<tr class="next">'
        for name, factor in layer["factors"].items():
            name = name.removesuffix("_factor").replace("_", " ")
            cells = _cells(show(factor) for show in _OF_FACTOR.values())
            rows.append(
                f'{row}{start}<td class="name">{html.escape(name)}</td>'
                f"{cells}</tr>"
            )
            row, start = "<tr>", ""
    return _table(("layer", *_OF_LAYER, "factor", *_OF_FACTOR), rows)


def _cells(texts: Iterable[str], options: str = "") -> str:
    return "".join(f"<td{options}>{text}</td>" for text in texts)


def _table(head: Iterable[str], rows: Iterable[str]) -> str:
    cells = "".join(f"<th>{name}</th>" for name in head)
    return f"<table><tr>{cells}</tr>{''.join(rows)}</table>"


def _side(factor: Record) -> str:
    groups = f"{factor['groups']} × " if factor["groups"] > 1 else ""
    return f"{groups}{factor['side']}{' diagonal' * factor['diagonal']}"


def _number(key: str) -> Callable[[Record], str]:
    return lambda record: number(record[key])


def _percent(key: str) -> Callable[[Record], str]:
    return lambda record: percent(record[key])


def percent(value: float | None) -> str:
    """Returns a share as a number of %; a dash for None."""
    if value is None:
        return "–"
    digits = 0 if value >= 0.1 else 1 if value >= 0.01 else 2
    shown = f"{100 * value:.{digits}f}"
    return f"{shown if float(shown) else 0} %"


_OF_LAYER = {
    "of the KL": _percent("share"),
    "of the step": _percent("step"),
    "pi": _number("pi"),
    "damping /<br>curvature": _number("relative_damping"),
    "rounding": _percent("rounding"),
    "age": _number("age"),
    "failed": _number("failed"),
    "examples": lambda x: number(x["examples"] and round(x["examples"])),
}
_OF_FACTOR = {
    "side": _side,
    "rank": _number("rank"),
    "silent": _number("silent"),
    "condition": _number("condition"),
    "damping": _number("damping"),
    "moved": _percent("movement"),
}

NOTE = """<p class="note"><b>of the KL</b>: the part of the layer in the sum of
&lt;U, V&gt; that the clip bounds, mean since the record before. <b>of the
step</b>: in the squared norm of the momentum. <b>pi</b>: the split of the
damping between the factors. <b>damping / curvature</b>: the damping over the
mean eigenvalue of the layer's curvature. <b>rounding</b>: what it may change of
U. <b>age</b>: updates since the inversion. <b>failed</b>: inversions so far.
<b>examples</b>: rows in the running average, in effect. <b>rank</b>: of small
factors. <b>silent</b>: inputs or outputs that are always 0. <b>condition</b>:
of the factor with its damping. <b>moved</b>: since the inversion, relative, in
the Frobenius norm.</p>"""
