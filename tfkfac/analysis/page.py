"""The page that tells how K-FAC is: HTML that needs nothing else."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from tfkfac.analysis import tables
from tfkfac.analysis.curves import number, picture
from tfkfac.analysis.findings import Finding

Record = Mapping[str, Any]

SHOWN = 6  # Layers with a curve each: those that stand out at the end.
_CURVES = ("condition", "movement", "share")  # Of layers.
_STYLE = """
:root { color-scheme: light; }
body { font: 14px/1.45 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 1120px; margin: 24px auto; padding: 0 20px; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 16px; margin: 28px 0 8px; }
.sub { color: #666; margin: 2px 0 16px; }
.verdict { padding: 10px 14px; border-left: 5px solid #4d9221;
  background: #f1f7ec; font-size: 15px; }
.verdict.bad { border-color: #c8553d; background: #fbeeeb; }
.numbers { display: flex; flex-wrap: wrap; gap: 10px; margin: 14px 0; }
.numbers div { flex: 1 1 95px; border: 1px solid #e2e2e2; border-radius: 4px;
  padding: 7px 11px; }
.numbers b { display: block; font-size: 18px; }
.numbers span { color: #666; font-size: 12px; }
.finding { border-left: 4px solid #c8553d; padding: 2px 12px; margin: 10px 0; }
.finding.remark { border-color: #999; }
.finding p { margin: 2px 0; } .finding ul { margin: 2px 0; padding-left: 20px; }
.mend { color: #2166ac; }
.pictures { display: flex; flex-wrap: wrap; gap: 16px; }
.pictures figure { flex: 0 0 340px; width: 340px; margin: 0; }
figcaption { font-weight: 600; font-size: 13px; }
.legend { font-size: 11px; color: #444; line-height: 1.5; }
.legend span { margin-right: 10px; white-space: nowrap; }
.legend i { display: inline-block; width: 14px; height: 3px;
  vertical-align: middle; margin-right: 4px; }
.none { color: #888; font-size: 12px; }
table { border-collapse: collapse; font-size: 12px; }
th, td { text-align: right; padding: 3px 7px; border-bottom: 1px solid #eee;
  white-space: nowrap; vertical-align: top; }
th { border-bottom: 1px solid #999; font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child, td.name { text-align: left; }
tr.next td { border-top: 1px solid #ccc; } td.bad { background: #f8d9d2; }
.scroll { overflow-x: auto; } .note { color: #666; font-size: 12px; }
"""


def page(records: Sequence[Record], found: Sequence[Finding]) -> str:
    """Returns the page as a string of HTML.

    Args:
        records: Those of `tfkfac.callbacks.Health`, at least one; all but the
            last may be `thinned`.
        found: What they call for, of `findings`.
    """
    last = records[-1]
    ranks = f" on {last['ranks']} ranks" if last["ranks"] > 1 else ""
    title = f"K-FAC of {last['model']}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="sub">{_happened(records)}{ranks}</p>',
        _verdict(found),
        _numbers(records),
        "".join(_finding(x) for x in found),
        "<h2>Course</h2>",
        f'<div class="pictures">{_pictures(records)}</div>',
        "<h2>Where the time went</h2>",
        tables.stages(records),
        "<h2>Layers now</h2>",
        f'<div class="scroll">{tables.layers(last, found)}</div>',
        tables.NOTE,
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def thinned(record: Record) -> dict[str, Any]:
    """Returns a record with those numbers of its layers that have curves."""
    layers = {
        path: {key: layer[key] for key in _CURVES}
        for path, layer in record["layers"].items()
    }
    return {**record, "layers": layers}


# What happened.


def _happened(records) -> str:
    """Returns the run in a sentence."""
    last = records[-1]
    what = f"{last['update']:,} updates"
    epochs = [r["epoch"] for r in records if r["epoch"] is not None]
    if epochs:
        what += f" in {epochs[-1]} epoch{'s' * (epochs[-1] != 1)}"
    losses = [r["metrics"].get("loss") for r in records]
    known = [x for x in losses if x is not None]
    if len(known) > 1:
        what += f"; the loss went from {known[0]:.4g} to {known[-1]:.4g}"
    if "loss" in last["metrics"] and losses[-1] is None:
        what += "; the loss is not finite"
    return what


def _verdict(found) -> str:
    warnings = [x for x in found if x.is_warning]
    if not warnings:
        return '<p class="verdict">Nothing to mend.</p>'
    kinds = ", ".join(x.kind for x in warnings)
    count = f"{len(warnings)} warning{'s' * (len(warnings) > 1)}"
    return f'<p class="verdict bad">{count}: {kinds}.</p>'


def _numbers(records) -> str:
    """Returns the numbers of the whole, each with its name."""
    last = records[-1]
    updates, clipped = (last["so_far"][k] for k in ("updates", "clipped"))
    total = sum(s for r in records for _, s in r["stages"].values())
    own = sum(r["health_seconds"] for r in records)
    failed = sum(x["failed"] for x in last["layers"].values())
    shown = {
        "updates": f"{last['update']:,}",
        "skipped": f"{last['skipped']:,}",
        "failed inversions": f"{failed:,}",
        "damping": number(last["damping"]),
        "learning rate": number(last["learning_rate"]),
    }
    if last["kl_clip"] is not None:
        shown["KL bound"] = number(last["kl_clip"])
        shown["updates clipped"] = tables.percent(clipped / max(updates, 1))
    shown["time for Health"] = tables.percent(own / (total + own or 1))
    items = "".join(
        f"<div><b>{value}</b><span>{name}</span></div>"
        for name, value in shown.items()
    )
    return f'<div class="numbers">{items}</div>'


def _finding(finding: Finding) -> str:
    items = "".join(
        f"<li><b>{html.escape(path)}</b>"
        f"{': ' * bool(detail)}{html.escape(detail)}</li>"
        for path, detail in finding.layers.items()
    )
    return (
        f'<div class="finding{" remark" * (not finding.is_warning)}">'
        f"<p><b>{html.escape(finding.what)}</b></p>"
        f"{f'<ul>{items}</ul>' * bool(items)}"
        f'<p class="mend">{html.escape(finding.mend)}</p></div>'
    )


# Curves.


def _pictures(records) -> str:
    x = [r["update"] for r in records]

    def of(key):
        return [r[key] for r in records]

    def metric(key):
        return [r["metrics"].get(key) for r in records]

    losses = {"training": metric("loss"), "validation": metric("val_loss")}
    losses = {k: v for k, v in losses.items() if any(v)}
    numbers = {"damping": of("damping"), "learning rate": of("learning_rate")}
    shown = [("Loss", picture(x, losses, log=_is_positive(losses)))]
    if records[-1]["kl_clip"] is not None:
        numbers["KL bound"] = of("kl_clip")
        clip = {
            "coefficient, mean": of("clip"),
            "share of updates clipped": [
                r["clipped"] / r["updates"] if r["updates"] else None
                for r in records
            ],
        }
        shown.append(("KL clip", picture(x, clip, least=0.0, most=1.0)))
    shown.append(("Numbers", picture(x, numbers, log=True)))
    for caption, key, log in (
        ("Condition, the worse factor", "condition", True),
        ("Movement since the inverse, 2 at most", "movement", False),
    ):
        series = _of_layers(records, key)
        if not log:
            series = {k: [v and min(v, 2) for v in series[k]] for k in series}
        shown.append((caption, picture(x, series, log=log, least=0.0)))
    share = _of_layers(records, "share")
    shown.append(("Share of the KL", picture(x, share, least=0.0)))
    return "".join(
        f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"
        for caption, svg in shown
    )


def _is_positive(series) -> bool:
    values = [v for of in series.values() for v in of if v is not None]
    return bool(values) and min(values) > 0


def _of_layers(records, key: str) -> dict[str, list[float | None]]:
    """Returns a number of those layers that have the largest ones now."""
    last = records[-1]["layers"]
    ranked = sorted(last, key=lambda path: -(last[path][key] or 0))
    return {
        path: [r["layers"].get(path, {}).get(key) for r in records]
        for path in ranked[:SHOWN]
    }
