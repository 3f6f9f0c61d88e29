"""The benchmark in seconds: its rules, on records worked out by hand."""

import json
import math

import keras
import numpy as np
import pytest

from tools.time_to_target import report, runs, settings, tasks, training


def record(optimizer, seed, steps, seconds, task="digits_cnn", **more):
    return {
        "task": task,
        "optimizer": optimizer,
        "arguments": {},
        "seed": seed,
        "steps": steps,
        "seconds": seconds,
        "processor_seconds": seconds and 2 * seconds,
        "first_step_seconds": 1.0,
        "peak_mib": 100.0,
        "curve": [[5, 0.5, 1.0]],
        **more,
    }


def test_each_peer_has_sixteen_settings_and_kfac_as_it_comes_one():
    assert settings.SETTINGS["kfac"] == [{}]
    counts = {n: len(s) for n, s in settings.SETTINGS.items() if n != "kfac"}
    assert set(counts.values()) == {16} and len(settings.PEERS) == 4


def test_medians_count_a_missed_target_as_infinite():
    found = report.medians(
        record("adam", s, *of_seed)
        for s, of_seed in enumerate([(10, 1.0), (None, None), (30, 2.0)])
    )
    assert (found["steps"], found["seconds"], found["reached"]) == (30, 2.0, 2)
    missed = [record("adam", s, None, None) for s in (0, 1)]
    missed.append(record("adam", 2, 10, 1.0))
    assert math.isinf(report.medians(missed)["steps"])


def test_ratios_are_to_the_best_peer_of_each_task():
    records = [
        record(name, seed, steps, seconds)
        for seed in runs.SEEDS
        for name, steps, seconds in (
            ("kfac", 10, 4.0),
            ("kfac_tuned", 1, 0.1),  # No peer.
            ("adam", 40, 5.0),
            ("muon", 20, 8.0),
        )
    ]
    records.append(record("adam", runs.TUNING_SEED, 1, 0.1))  # No seed.
    table = report.rows(records)
    assert report.ratios(table, "steps") == {"digits_cnn": 0.5}
    assert report.ratios(table, "seconds") == {"digits_cnn": 0.8}
    assert "0.80 in the geometric mean, ahead on 1" in report.markdown(table)


def test_geometric_mean():
    assert report.geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)
    assert report.geometric_mean([0.5, math.inf]) == math.inf
    assert math.isnan(report.geometric_mean([]))


def test_runs_go_on_from_the_file(tmp_path, monkeypatch):
    """A search gives settings up at the best steps so far."""
    asked = []

    def train(run):
        asked.append(run)
        rate = run["arguments"].get("learning_rate", 0)
        steps = {2e-3: 40, 1e-2: 20}.get(rate)
        limit = run["limit"]
        if steps and limit and steps > limit:
            steps = None
        seconds = steps and float(steps)
        found = record(run["optimizer"], run["seed"], steps, seconds)
        return {**found, "task": run["task"], "arguments": run["arguments"]}

    monkeypatch.setattr(runs, "_train", train)
    made = runs.Runs(tmp_path, show=lambda line: None)
    made.measure("digits_cnn", ["kfac", "adam"])
    assert len(asked) == 16 + 2 * len(runs.SEEDS)
    assert [r["limit"] for r in asked[:16]] == [None] * 5 + [40] * 6 + [20] * 5
    best = {"learning_rate": 1e-2, "schedule": "constant"}
    turns = [(r["seed"], r["optimizer"]) for r in asked[16:]]
    assert turns == [(s, n) for s in runs.SEEDS for n in ("kfac", "adam")]
    assert all(
        r["arguments"] == best for r in asked[16:] if r["optimizer"] == "adam"
    )
    again = runs.Runs(tmp_path, show=lambda line: None)
    again.measure("digits_cnn", ["kfac", "adam"])
    assert len(asked) == 16 + 2 * len(runs.SEEDS)
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 22


def tiny(monkeypatch, target, validation_target=None):
    x = np.linspace(-1, 1, 64, dtype="float32")[:, np.newaxis]
    task = tasks.Task(
        lambda: tasks.Data(x, 2 * x, x, 2 * x),
        lambda: keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]),
        "mse",
        batch_size=16,
        steps=40,
        every=2,
        target=target,
        validation_target=validation_target,
    )
    monkeypatch.setitem(tasks.TASKS, "tiny", task)


@pytest.mark.parametrize("optimizer", ["kfac", "adam"])
def test_run_ends_at_the_target(optimizer, monkeypatch):
    tiny(monkeypatch, target=0.05, validation_target=0.05)
    arguments = {} if optimizer == "kfac" else {"learning_rate": 0.3}
    found = training.train("tiny", optimizer, arguments, seed=0)
    last = found["curve"][-1]
    assert found["steps"] % 2 == 0 and found["steps"] < 40
    assert dict((s, v) for s, v, _ in found["curve"])[found["steps"]] <= 0.05
    assert last[0] == max(found["steps"], found["validation_steps"])
    assert 0 < found["first_step_seconds"] < found["seconds"]
    json.dumps(found)


def test_run_that_stays_goes_on_over_as_many_steps_again(monkeypatch):
    tiny(monkeypatch, target=0.05)
    found = training.train("tiny", "kfac", {}, seed=0, stay=True)
    assert found["curve"][-1][0] == 2 * found["steps"] > 40
    after = [v for s, v, _ in found["curve"] if s > found["steps"]]
    assert found["worst_after"] == max(after)


def test_run_that_diverges_or_is_given_up(monkeypatch):
    tiny(monkeypatch, target=1e-9)
    found = training.train("tiny", "momentum", {"learning_rate": 1e20}, seed=0)
    assert found["failure"] == "diverged" and found["steps"] is None
    found = training.train("tiny", "adam", {"learning_rate": 1e-5}, 0, limit=6)
    assert found["curve"][-1][0] == 6 and found["steps"] is None


def test_data_that_comes_with_packages():
    for name in ("digits_cnn", "text", "diabetes", "breast_cancer", "unet"):
        task = tasks.TASKS[name]
        data = task.data()
        assert len(data.x) == len(data.y) > len(data.x_validation) > 0
        assert np.isfinite(data.x).all()
    assert tasks.diabetes().x.std() > 50  # In their own units.
    assert 0.4 < tasks.sources().y.mean() < 0.6
    assert set(tasks.KEPT) < set(tasks.TASKS)
