"""One run of the benchmark in seconds."""

import json
import math

import keras
import numpy as np
import pytest

from tools.time_to_target import data, optimizers, studies, tasks, training


def tiny(monkeypatch, target, validation_target=None):
    x = np.linspace(-1, 1, 64, dtype="float32")[:, np.newaxis]
    task = tasks.Task(
        lambda: data.Data(x, 2 * x, x, 2 * x),
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
    if optimizer == "adam":  # Two moments of two weights, a rate, a count.
        assert found["state_mib"] * 2**20 == 2 * 2 * 4 + 4 + 8
    json.dumps(found)


def test_run_that_stays_goes_on_over_as_many_steps_again(monkeypatch):
    tiny(monkeypatch, target=1e-5)
    found = training.train("tiny", "kfac", {}, seed=0, stay=True)
    assert found["curve"][-1][0] == 2 * found["steps"] > 40
    after = [v for s, v, _ in found["curve"] if s > found["steps"]]
    assert found["worst_after"] == max(after)


def test_loss_that_is_not_finite_after_the_target_is_the_worst(monkeypatch):
    tiny(monkeypatch, target=1.0)
    clock = training.Clock(tasks.TASKS["tiny"], 40, True, None)
    clock.set_model(keras.Sequential())
    clock.on_train_begin()
    clock.start()
    for epoch, loss in enumerate((2.0, 0.5, 0.7, math.nan)):
        clock.on_epoch_end(epoch, {"loss": loss})
    assert clock.record["steps"] == 4
    assert clock.record["worst_after"] == math.inf and clock.model.stop_training


def test_peak_is_that_of_the_training_alone():
    training._forget_peak()
    before = training._peak()
    held = np.ones(64 * 2**17)  # 64 MiB
    assert training._peak() > before + 60
    del held
    training._forget_peak()
    assert training._peak() < before + 30


def test_run_that_diverges_or_is_given_up(monkeypatch):
    tiny(monkeypatch, target=1e-9)
    found = training.train("tiny", "momentum", {"learning_rate": 1e20}, seed=0)
    assert found["failure"] == "diverged" and found["steps"] is None
    found = training.train("tiny", "adam", {"learning_rate": 1e-5}, 0, limit=6)
    assert found["curve"][-1][0] == 6 and found["steps"] is None
    found = training.train("tiny", "adam", {"learning_rate": 1e-5}, 0, limit=50)
    assert found["curve"][-1][0] == 50  # Twice the steps of another, say.


def test_run_of_so_many_steps_passes_the_target(monkeypatch):
    """Its schedule ends with it."""
    tiny(monkeypatch, target=10.0, validation_target=10.0)
    arguments = {"learning_rate": 0.1, "schedule": "cosine"}
    found = training.train("tiny", "adam", arguments, seed=0, after=20)
    assert found["curve"][-1][0] == 20
    assert found["steps"] is found["validation_steps"] is None
    made = optimizers.make("adam", arguments, 20, None)
    assert float(made._learning_rate(20)) == 0.0
    assert "schedule" in arguments


def test_kfac_of_some_layers_and_with_growing_periods():
    layers = [keras.layers.Dense(2, name=name) for name in ("one", "other")]
    model = keras.Sequential([keras.Input((3,)), *layers])
    made = optimizers.make("kfac", {"only": ["one"], "growing": 2}, 9, model)
    assert made.skip == ("other",) and made.fallback == "gradient"
    config = made.get_config()
    for name in ("factor_update_period", "inverse_update_period"):
        assert config[name]["class_name"] == "GrowingInterval"


def test_the_diagonal_curvature_goes_with_equation_21():
    """Osawa et al. 2019, 5.4: 1 for 13 epochs of 11.2 updates, then 20."""
    arms = studies.STUDIES["stale"].arms
    (settings,) = arms["late rule, diagonal"].settings
    assert settings["norm_curvature"] == "diagonal"
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    made = optimizers.make("kfac", settings, 250, model)
    for period in made.periods.values():
        found = [int(period._schedule(t)) for t in (0, 145, 146, 249)]
        assert found == [1, 1, 20, 20]  # 13 * 1437 / 128 = 145.9.
