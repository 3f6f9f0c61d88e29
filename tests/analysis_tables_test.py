"""Tables of the page of health."""

import re

from analysis_findings_test import FACTOR, healthy

from tfkfac.analysis import tables


def cells(table):
    """Returns the texts of the cells, row by row."""
    return [
        re.findall(r"<td[^>]*>([^<]*)</td>", row)
        for row in table.split("<tr")[2:]
    ]


def test_times_of_updates_by_what_was_due():
    records = [
        healthy(stages={"first": [1, 30.0], "plain": [9, 0.9]}),
        healthy(200, stages={"plain": [1, 0.1], "inverses": [4, 1.0]}),
    ]
    assert cells(tables.stages(records)) == [
        ["first, with building the graph", "1", "30.0 s", "30.0 s", "–"],
        ["nothing due", "10", "100 ms", "1.0 s", "50 %"],
        ["inverses due", "4", "250 ms", "1.0 s", "50 %"],
    ]


def test_a_row_of_each_factor():
    record = healthy()
    record["layers"]["conv"]["factors"] = {
        "factor": FACTOR | {"groups": 3, "diagonal": True, "rank": None}
    }
    found = cells(tables.layers(record, []))
    conv, first, second = found
    of_layer = ["50 %", "50 %", "1", "0.1", "0.01 %", "3", "0", "500"]
    assert conv == [
        "conv", *of_layer, "factor", "3 × 8 diagonal", "–", "0", "100", "0.1",
        "10 %",
    ]  # fmt: skip
    assert first[:9] == ["dense", *of_layer] and first[9] == "input"
    assert second == ["output", "8", "8", "0", "100", "0.1", "10 %"]


def test_shares_in_percent():
    found = [tables.percent(x) for x in (None, 0, 1e-6, 0.0042, 0.042, 0.42, 3)]
    assert found == ["–", "0 %", "0 %", "0.42 %", "4.2 %", "42 %", "300 %"]
