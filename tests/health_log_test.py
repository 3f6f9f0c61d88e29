"""The files of health."""

import json
import pathlib

import pytest
import tensorflow as tf
from analysis_findings_test import healthy

from tfkfac.analysis.page import thinned
from tfkfac.callbacks.health_log import HealthLog, LogError


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


def without(name):
    return {k: v for k, v in healthy().items() if k != name}


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        b"\xff\xfe",
        "[" * 99999,
        [1],
        {"step": 3},
        {"update": 3, "layers": []},
        *(without(name) for name in ("metrics", "stages", "clip", "epoch")),
        healthy(update="3"),
        healthy(update=-3),
        healthy(updates=True),
        healthy(damping=float("nan")),
        healthy(health_seconds=None),
        healthy(stages={"first": [1]}),
        healthy(metrics={"loss": "low"}),
        healthy(so_far={"updates": 3}),
        healthy(layers={"dense": {}}),
        healthy(learning_rate=10**400),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, line):
    path = tmp_path / "health.jsonl"
    if not isinstance(line, bytes):
        line = (line if isinstance(line, str) else json.dumps(line)).encode()
    sound = json.dumps(healthy()).encode()
    path.write_bytes(sound + b"\n" + line + b"\n")
    with pytest.raises(LogError, match=r"^line 2 of .*health.jsonl is no rec"):
        HealthLog(tmp_path, False).begin(500)
    assert path.read_bytes() == sound + b"\n" + line + b"\n"


def test_files_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    log = logged(tmp_path, healthy(10))
    before = (tmp_path / "health.jsonl").read_bytes()
    (tmp_path / "file").touch()
    with pytest.raises(LogError, match="file/a cannot be written .Not a dir"):
        HealthLog(tmp_path / "file" / "a", False)
    full = tmp_path / "full"
    full.mkdir()
    for name in ("health.jsonl", "part.health.html"):
        (full / name).symlink_to("/dev/full")
    message = "cannot be written .No space left on device.: make room, or give"
    with pytest.raises(LogError, match=f"{full}/health.jsonl {message}"):
        logged(full, healthy())
    with pytest.raises(LogError, match=f"{full}/health.html {message}"):
        HealthLog(full, False).write_page([healthy()], [], True)
    assert [path.name for path in full.iterdir()] == ["health.jsonl"]
    # What there was stays as it was, without the part of a line.
    write = pathlib.Path.open

    def half(path, *arguments, **more):
        with write(path, "a") as file:
            file.write('{"update": 2')
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(pathlib.Path, "open", half)
        with pytest.raises(LogError, match="health.jsonl cannot be written"):
            log.add(healthy(20), {})
    assert (tmp_path / "health.jsonl").read_bytes() == before


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
