"""Curves as SVG."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from tfkfac.analysis import curves


def points(svg):
    """Returns the points of each line."""
    return [
        [tuple(map(float, p.split(","))) for p in line.split()]
        for line in re.findall(r'points="([^"]*)"', svg)
    ]


def test_lines_go_where_the_values_are():
    svg = curves.picture([0, 5, 10], {"a": [0.0, 1.0, 0.5], "b": [1, None, 0]})
    (a, b), ElementTree_root = (
        points(svg),
        ElementTree.fromstring(f"<div>{svg}</div>"),
    )
    assert ElementTree_root.find("svg") is not None
    # Across by x, up by the value, from 0 to 1 here.
    left, right = a[0][0], a[2][0]
    assert a[1][0] == pytest.approx((left + right) / 2)
    low, high = a[0][1], a[1][1]
    assert high < low and a[2][1] == pytest.approx((low + high) / 2)
    assert b == [(left, high), (right, low)]


def test_decades_are_equally_high():
    svg = curves.picture([1, 2, 3, 4], {"a": [1e-4, 1e-2, 0.0, 1.0]}, log=True)
    (line,) = points(svg)
    assert len(line) == 3  # The 0 is left out.
    ys = [y for _, y in line]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)


def test_what_cannot_be_drawn():
    assert "nothing to draw" in curves.picture([], {})
    assert "nothing to draw" in curves.picture([1], {"a": [None]})
    assert "nothing to draw" in curves.picture([1], {"a": [0.0]}, log=True)
    assert "<circle" in curves.picture([1], {"a": [3.0]})
    assert "&lt;b&gt;" in curves.picture([1], {"<b>": [3.0]})


@pytest.mark.parametrize(
    "low, high", [(0, 1), (0.3, 0.31), (-5, 1234), (2, 2), (0, 0), (1e7, 3e8)]
)
def test_ticks_are_few_and_reach_around_the_values(low, high):
    ticks = curves._ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 6


@pytest.mark.parametrize("low, high", [(1e-13, 2.0), (3.0, 4.0), (1.0, 1e16)])
def test_decades_are_few_and_reach_around_the_values(low, high):
    ticks = curves._decades(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 7


def test_numbers_are_short():
    found = [
        curves.number(x) for x in (None, 0, 0.25, 7, 1234.5, 1e-5, 2.5e7, -3e-9)
    ]
    assert found == ["–", "0", "0.25", "7", "1,234", "1e-5", "2.5e7", "-3e-9"]
