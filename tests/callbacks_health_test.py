"""`Health` in `fit`: records, logs, the page, and runs that go on or end."""

import csv
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import logging
from classifier import LOSS, X, Y, compiled, small

import tfkfac
from tfkfac.analysis.page import thinned
from tfkfac.callbacks import Health


def fit(model, *callbacks, epochs=2, x=X, **options):
    model.fit(
        x, Y, batch_size=4, shuffle=False, verbose=0, epochs=epochs,
        callbacks=list(callbacks), **options,
    )  # fmt: skip


def page(folder):
    return (folder / "health.html").read_text()


def test_records_logs_and_the_page(tmp_path):
    """On a model that `fit` has trained before, without the callback."""
    options = dict(factor_update_period=2, inverse_update_period=4)
    model, _ = compiled(**options)
    fit(model, epochs=1)
    health = Health(tmp_path, tensorboard=True)
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    fit(model, health, log, validation_data=(X, Y))
    assert [r["update"] for r in health.records] == [8, 12]
    assert [r["epoch"] for r in health.records] == [1, 2]
    first, second = health.records
    stages = {k: n for k, (n, _) in second["stages"].items()}
    assert stages == {"inverses": 1, "plain": 2, "factors": 1}
    assert first["stages"]["first"][0] == 1
    assert sum(n for n, _ in first["stages"].values()) == 4
    lines = (tmp_path / "health.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    # What has no curve is in memory of the last one alone.
    assert health.records == [thinned(records[0]), records[1]]
    assert second["so_far"]["updates"] == 8
    for record in records:
        assert record["updates"] == 4 and 0 <= record["clip"] <= 1
        assert set(record["metrics"]) == {"loss", "val_loss"}
        assert list(record["layers"]) == ["hidden", "logits"]
        shares = [x["share"] for x in record["layers"].values()]
        assert sum(shares) == pytest.approx(1, rel=1e-4)
        steps = [x["step"] for x in record["layers"].values()]
        assert sum(steps) == pytest.approx(1, rel=1e-6)
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["kfac_clip"]) for r in rows] == [
        r["clip"] for r in health.records
    ]
    keys = {"skipped", "failed", "condition", "warnings", "clip", "kl_clip"}
    assert {f"kfac_{k}" for k in keys} < set(rows[0])
    assert "12 updates in 2 epochs" in page(tmp_path)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_run_that_dies_of_bad_gradients_leaves_a_page_on_them(tmp_path):
    model, _ = compiled(max_skipped_steps=2)
    bad = X.copy()
    bad[4:] = np.nan
    with pytest.raises(tf.errors.InvalidArgumentError, match="in a row"):
        fit(model, Health(tmp_path), x=bad)
    assert "2 of 3 updates were skipped" in page(tmp_path)
    assert " warnings: skipped updates" in page(tmp_path)


@pytest.mark.parametrize("name", ["damping", "factor_decay"])
def test_a_schedule_that_becomes_NaN_costs_updates_alone(  # noqa: N802
    tmp_path, name
):
    sound = {"damping": 0.1, "factor_decay": 0.9}[name]

    def late(t):
        return tf.where(t >= 2, float("nan"), sound)

    settings = {"compile_settings": {"run_eagerly": True}, name: late}
    model, optimizer = compiled(**settings)
    fit(model, Health(tmp_path), epochs=1)
    assert int(optimizer.updates) == 2 and int(optimizer.skipped_steps) == 2
    assert "1 warning: skipped updates." in page(tmp_path)
    assert "NaN" not in (tmp_path / "health.jsonl").read_text()


class Traces(keras.callbacks.Callback):
    """Wraps the function of the steps when training begins.

    Attributes:
        seen: The calls that it has seen.
    """

    def __init__(self, model):
        super().__init__()
        self.seen, self.traces = 0, 0
        step = model.train_step

        def traced(data):
            self.traces += 1
            return step(data)

        model.train_step = traced

    def on_train_begin(self, logs=None):
        self._function = function = self.model.train_function

        def seeing(iterator):
            self.seen += 1
            return function(iterator)

        self.model.train_function = seeing

    def on_train_end(self, logs=None):
        self.model.train_function = self._function


@pytest.mark.parametrize("before", [False, True])
def test_a_graph_is_traced_once_and_by_what_others_wrap(before):
    """Callbacks before `Health` keep the function; each `fit` is watched."""
    model, _ = compiled()
    others = Traces(model)
    if before:
        fit(model, others, epochs=1)
    had = others.traces
    for number in (1, 2):
        health = Health(None)
        fit(model, others, health, epochs=1)
        assert others.seen == 4 * (number + before)
        assert others.traces == had + 1
        (record,) = health.records[-1:]
        assert record["updates"] == 4
        assert ("first" in record["stages"]) == (number == 1)


def test_a_run_goes_on_with_its_records(tmp_path):
    """Those up to the update that a checkpoint is of; others are gone."""
    settings = {"run_eagerly": True}
    model, _ = compiled(compile_settings=settings)
    health = Health(tmp_path / "health", every=3)
    fit(model, health, epochs=1)
    model.save(tmp_path / "model.keras")
    fit(model, health, epochs=1)
    assert [r["update"] for r in health.records] == [3, 4, 7, 8]
    model = keras.models.load_model(tmp_path / "model.keras")
    model.run_eagerly = True
    tfkfac.attach(model)
    health = Health(tmp_path / "health")
    fit(model, health, epochs=1)
    assert [r["update"] for r in health.records] == [3, 4, 8]
    assert health.records[-1]["layers"]["hidden"]["age"] is not None
    # One that begins anew begins with none.
    model, _ = compiled(compile_settings=settings)
    fit(model, Health(tmp_path / "health"), epochs=1)
    lines = (tmp_path / "health" / "health.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in lines] == [4]


def test_training_goes_on_where_the_files_cannot_be_written(tmp_path, caplog):
    """Or hold something else; it is said once."""
    model, _ = compiled(compile_settings={"run_eagerly": True})
    full, other = tmp_path / "full", tmp_path / "other"
    for folder in (full, other):
        folder.mkdir()
    (full / "part.health.jsonl").symlink_to("/dev/full")
    (other / "health.jsonl").write_text("something else\n")
    for folder, said in (
        (full, f"Health: {full}/health.jsonl cannot be written .*make room"),
        (other, f"Health: line 1 of {other}/health.jsonl is no record of it"),
    ):
        caplog.clear()
        health = Health(folder)
        with (
            pytest.MonkeyPatch.context() as context,
            caplog.at_level("WARNING", "absl"),
        ):
            context.setattr(logging.get_absl_logger(), "propagate", True)
            fit(model, health, epochs=1)
        assert health.records[-1]["updates"] == 4
        (found,) = [r.getMessage() for r in caplog.records]
        assert re.match(f"{said}.*Training goes on", found)
        assert not (folder / "health.html").exists()
    assert (other / "health.jsonl").read_text() == "something else\n"


def test_micro_steps_are_timed_by_the_update():
    model, _ = compiled(
        compile_settings={"run_eagerly": True}, gradient_accumulation_steps=2
    )
    health = Health(None)
    fit(model, health)
    assert [r["update"] for r in health.records] == [2, 4]
    stages = [sum(n for n, _ in r["stages"].values()) for r in health.records]
    assert stages == [2, 2]
    # Rows are those of all micro-steps, of both updates.
    examples = health.records[-1]["layers"]["logits"]["examples"]
    assert 24 < examples <= 32


def test_several_updates_a_call_in_half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, optimizer = compiled(
            small(),
            compile_settings={"steps_per_execution": 2},
        )
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        health = Health(None)
        fit(model, health)
    finally:
        keras.config.set_dtype_policy("float32")
    last = health.records[-1]
    assert last["update"] == int(optimizer.updates) > 0
    assert set(last["stages"]) <= {"several at once", "plain", "factors",
                                   "inverses"}  # fmt: skip
    assert last["layers"]["hidden"]["factors"]["input_factor"]["condition"] > 1


def test_layers_that_are_frozen_on_the_way():
    model, _ = compiled(compile_settings={"run_eagerly": True})
    health = Health(None)
    fit(model, health, epochs=1)
    model.get_layer("hidden").trainable = False
    fit(model, health, epochs=1)
    assert [list(r["layers"]) for r in health.records] == [
        ["hidden", "logits"],
        ["logits"],
    ]
    assert health.records[-1]["updates"] == 4


def test_weights_without_a_block_are_named_unless_skipped():
    class Own(keras.layers.Layer):
        def build(self, shape):
            self.power = self.add_weight(shape=(shape[-1],), name="power")

        def call(self, x):
            return x * keras.ops.exp(self.power)

    for skip in ((), ("own",)):
        model = keras.Sequential(
            [keras.Input((4,)), Own(name="own"), keras.layers.Dense(3)]
        )
        optimizer = tfkfac.KFAC(0.05, model=model, skip=skip)
        model.compile(optimizer, LOSS, run_eagerly=True)
        health = Health(None)
        fit(model, health, epochs=1)
        named = [] if skip else ["sequential/own/power"]
        assert list(health.records[-1]["uncovered"]) == named


def test_what_is_refused(tmp_path):
    model, _ = compiled()
    model.compile(keras.optimizers.SGD(), LOSS)
    with pytest.raises(TypeError, match="compiled with SGD: leave"):
        fit(model, Health(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    for every in (0, 1.5, -2):
        with pytest.raises(ValueError, match="must be a positive integer"):
            Health(every=every)
    with pytest.raises(ValueError, match="needs a directory"):
        Health(None, tensorboard=True)
