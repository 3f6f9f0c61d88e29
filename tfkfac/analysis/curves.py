"""Curves as SVG, to stand in a page without anything else."""

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 24
COLORS = ("#2166ac", "#d6604d", "#4d9221", "#8e63b0", "#b8860b", "#3aa6a6")

Values = Sequence[float | None]


def picture(
    x: Sequence[float],
    series: Mapping[str, Values],
    *,
    log: bool = False,
    least: float | None = None,
    most: float | None = None,
) -> str:
    """Returns curves over x with axes and a legend, as an SVG element.

    Args:
        x: Increasing.
        series: By what the legend says, the values at x; None for none.
        log: Whether the axis is logarithmic; values up to 0 are left out then.
        least, most: What the axis reaches to at least.
    """

    def usable(value):
        return value is not None and (not log or value > 0)

    known = [
        v
        for values in series.values()
        for v in values
        if v is not None and usable(v)
    ]
    if not known or not x:
        return '<p class="none">nothing to draw yet</p>'
    known += [v for v in (least, most) if v is not None and usable(v)]
    ticks = (_decades if log else _ticks)(min(known), max(known))
    low, high = min(ticks[0], *known), max(ticks[-1], *known)
    scale = math.log10 if log else float

    def across(value):
        part = (value - x[0]) / ((x[-1] - x[0]) or 1)
        return _LEFT + part * (WIDTH - _LEFT - _RIGHT)

    def up(value):
        part = (scale(value) - scale(low)) / ((scale(high) - scale(low)) or 1)
        return HEIGHT - _BOTTOM - part * (HEIGHT - _TOP - _BOTTOM)

    parts = [_axes(x, ticks, across, up)]
    for i, values in enumerate(series.values()):
        points = [(across(a), up(v)) for a, v in zip(x, values) if usable(v)]
        parts.append(_line(points, COLORS[i % len(COLORS)]))
    legend = "".join(
        f'<span><i style="background:{COLORS[i % len(COLORS)]}"></i>'
        f"{html.escape(name)}</span>"
        for i, name in enumerate(series)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-size="10" fill="#555">{"".join(parts)}'
        f'</svg><div class="legend">{legend}</div>'
    )


def _line(points, color):
    """Returns a line through points, or a dot where there is one."""
    if len(points) == 1:
        a, b = points[0]
        return f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="{color}"/>'
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{color}" '
        'stroke-width="1.8" stroke-linejoin="round"/>'
    )


def _axes(x, ticks, across, up) -> str:
    """Returns a line and a number for each tick, and the ends of x."""
    parts = []
    for tick in ticks:
        y = up(tick)
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" '
            f'y2="{y:.1f}" stroke="#ddd"/><text x="{_LEFT - 5}" '
            f'y="{y + 3.5:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    ends = [(x[0], "start")] + [(x[-1], "end")] * (x[-1] != x[0])
    for value, anchor in ends:
        parts.append(
            f'<text x="{across(value):.1f}" y="{HEIGHT - 8}" '
            f'text-anchor="{anchor}">{value:g}</text>'
        )
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Returns two to five round numbers from below `low` to above `high`."""
    span = (high - low) or abs(high) or 1.0
    unit = 10 ** math.floor(math.log10(span))
    for step in (f * unit for f in (0.25, 0.5, 1, 2, 5)):
        first, last = math.floor(low / step), math.ceil(high / step)
        if last - first <= 4:
            break
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Returns up to six powers of ten from below `low` to above `high`."""
    first = math.floor(math.log10(low) + 1e-9)
    last = max(math.ceil(math.log10(high) - 1e-9), first + 1)
    step = math.ceil((last - first) / 5)
    last = first + step * math.ceil((last - first) / step)
    return [10.0**i for i in range(first, last + 1, step)]


def number(value: float | None) -> str:
    """Returns a number in a few characters; a dash for None."""
    if value is None:
        return "–"
    if 100 <= abs(value) < 100_000:
        return f"{value:,.0f}"
    if value == 0 or 0.001 <= abs(value) < 100:
        return f"{value:.3g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"
