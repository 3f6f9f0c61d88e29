"""The files of health."""

import json

import pytest
import tensorflow as tf
from analysis_findings_test import healthy

from tfkfac.analysis.page import thinned
from tfkfac.callbacks.health_log import HealthLog


def updates(path):
    lines = (path / "health.jsonl").read_text().splitlines()
    return [json.loads(line)["update"] for line in lines]


def logged(path, *records):
    log = HealthLog(path, False)
    for record in records:
        log.add(record, {})
    return log


def test_a_run_that_goes_on_keeps_the_records_up_to_its_update(tmp_path):
    folder = tmp_path / "some" / "where"
    logged(folder, *(healthy(10 * i) for i in range(1, 6)))
    with open(folder / "health.jsonl", "a") as file:
        file.write('{"update": 6')  # A kill has left no more of it.
    lines = (folder / "health.jsonl").read_text().splitlines()
    found = HealthLog(folder, False).begin(30)
    assert [r["update"] for r in found] == [10, 20, 30]
    assert found[1] == thinned(healthy(20))
    # The file has them as they were.
    assert (folder / "health.jsonl").read_text().splitlines() == lines[:3]


def test_a_run_that_begins_begins_the_records_anew(tmp_path):
    logged(tmp_path, healthy(10))
    assert HealthLog(tmp_path, False).begin(0) == []
    assert updates(tmp_path) == []


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[1]",
        '{"step": 3}',
        '{"update": 3, "layers": []}',
        '{"update": "3", "layers": {}, "so_far": {"updates": 3}}',
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, line):
    path = tmp_path / "health.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"line 1 of .*health.jsonl is no"):
        HealthLog(tmp_path, False).begin(5)
    assert path.read_text() == line + "\n"


def test_the_page_takes_half_a_percent_of_the_time(tmp_path):
    log, path = HealthLog(tmp_path, False), tmp_path / "health.html"
    log.write_page([healthy()], [], in_any_case=False)
    assert "100 updates" in path.read_text()
    log._seconds = 3600.0  # So long did it take.
    log.write_page([healthy(200)], [], in_any_case=False)
    assert "100 updates" in path.read_text()
    log.write_page([healthy(300)], [], in_any_case=True)
    assert "300 updates" in path.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["health.html"]


def test_event_files_have_numbers_of_layers(tmp_path):
    log = HealthLog(tmp_path, True)
    log.add(healthy(7), {"kfac_clip": 0.5})
    log.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    found = {
        value.tag: (event.step, float(tf.make_ndarray(value.tensor)))
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert found["health/kfac_clip"] == (7, 0.5)
    assert found["health/dense/output_factor/condition"] == (7, 100.0)
    assert found["health/seconds/first"] == (7, 2.0)
