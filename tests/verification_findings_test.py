"""The table of `verify`."""

import keras
import pytest

from tfkfac.verification import Finding, Report
from tfkfac.verification.findings import (
    failed,
    judged,
    note,
    of_model,
    relative,
)

TABLE = """\
check  result  figure   what it says
-----  ------  -------  ------------
share  ok      90.0 %   of all.
size   ok      2.0e-05  2 compared, the worst is b
size   FAILED  5.0e-01  c, d: wrong.
size   note             e: not compared.
net: 2 of 5 checks FAILED in 1.2 s."""


def test_table():
    findings = [
        Finding("share", "", "ok", "90.0 %", "of all."),
        judged("size", "a", 1e-5, "wrong."),
        judged("size", "b", 2e-5, "wrong."),
        judged("size", "c", 0.4, "wrong."),
        judged("size", "d", 0.5, lambda: "wrong."),
        note("size", "e", "not compared."),
    ]
    report = Report("net", findings, 1.24)
    assert str(report) == TABLE
    assert not report.ok
    assert [f.where for f in report.failed] == ["c", "d"]


def test_all_passed():
    report = Report("net", [judged("x", "a", 0.0, "")], 0.0)
    assert report.ok and "all 1 checks passed" in str(report)


@pytest.mark.parametrize(
    "error, options, result",
    [
        (1e-2, {}, "FAILED"),
        (1e-2, {"half": True}, "ok"),
        (1e-2, {"bound": 0.02}, "ok"),
        (float("nan"), {}, "FAILED"),
    ],
)
def test_bounds(error, options, result):
    assert judged("x", "", error, "wrong", **options).result == result


def test_name_of_the_model_where_there_are_several():
    model = keras.Sequential([keras.Input((1,))], name="net")
    findings = [failed("x", "a", ""), failed("x", "", "")]
    assert of_model(model, findings, False) == findings
    named = [f.where for f in of_model(model, findings, True)]
    assert named == ["net/a", "net"]


def test_relative():
    assert relative([3.0, 4.0], [0.0, 4.0]) == 0.75
    assert relative([0.0], [0.0]) == 0.0
    assert relative([1.0], [0.0]) == 1.0
