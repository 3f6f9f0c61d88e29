"""What is done around the methods of a model."""

import contextlib
import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkfac import assertions, model_methods


class Requiring(keras.Model):
    """Its step requires that the inputs are below 3, and at most 2 rows."""

    def train_step(self, data):
        assertions.require(tf.reduce_all(data < 3), "It is 3.")
        tf.debugging.assert_less(tf.shape(data)[0], 3, "Too many rows.")
        return {"loss": tf.constant(1.0)}


HOW = [{"run_eagerly": True}, {}, {"steps_per_execution": 2}]


@pytest.mark.parametrize("how", HOW, ids=["eager", "graph", "several"])
def test_a_failed_requirement_is_a_sentence(how):
    model = Requiring()
    model_methods.wrap_training(model)
    for _ in range(2):  # Compiled anew, and with the function as it is.
        model.compile("sgd", **how)
        model.fit(np.ones([4, 1]), batch_size=2, verbose=0)
        for _ in range(2):
            with pytest.raises(tf.errors.InvalidArgumentError) as caught:
                model.fit(np.full([4, 1], 3.0), batch_size=2, verbose=0)
            assert str(caught.value) == "It is 3."
            assert caught.value.__cause__ is caught.value.__context__ is None
    with pytest.raises(tf.errors.InvalidArgumentError, match="Too many rows"):
        model.fit(np.ones([6, 1]), batch_size=3, verbose=0)


def test_the_function_is_made_once():
    """`force` makes it anew."""
    model = Requiring()
    model_methods.wrap_training(model)
    model.compile("sgd")
    first = model.make_train_function()
    assert model.make_train_function() is first is model.train_function
    assert model.make_train_function(force=True) is not first


class Noting(keras.Model):
    """Notes whether Python collects garbage while its step is traced."""

    def train_step(self, data):
        self.collecting = gc.isenabled()
        if self.fails:
            raise ValueError("It fails.")
        return {"loss": tf.reduce_sum(data)}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
def test_a_trace_waits_with_collecting_garbage(fails, enabled):
    """And leaves the collector as it was, where it fails as well."""
    model = Noting()
    model.fails, model.collecting = fails, None
    model_methods.wrap_training(model)
    model.compile("sgd")
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with contextlib.suppress(ValueError):
            model.fit(np.ones([4, 1]), batch_size=2, verbose=0)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert model.collecting is False


def test_a_check_comes_before_the_method(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    refused = []

    def check():
        if refused:
            raise RuntimeError(refused[0])

    model_methods.call_before(model, save=check)
    path = tmp_path / "a.keras"
    model.save(path)
    before = path.read_bytes()
    refused.append("not now")
    for name in ("a", "b"):
        with pytest.raises(RuntimeError, match="not now"):
            model.save(tmp_path / f"{name}.keras")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.keras"]
    model.save_weights(tmp_path / "a.weights.h5")


def test_xla_is_kept_away_where_it_was_not_asked_for():
    model = keras.Sequential([keras.layers.Dense(1)], name="auto")
    model_methods.keep_xla_away(model, 2)
    model.compile("sgd", "mse", jit_compile="auto")
    model.jit_compile = True  # As "auto" comes to on a GPU.
    model.make_train_function()
    assert not model.jit_compile
    model = keras.Sequential([keras.layers.Dense(1)], name="asked")
    model_methods.keep_xla_away(model, 2)
    model.compile("sgd", "mse", jit_compile=True)
    with pytest.raises(ValueError, match="'asked' was compiled .* one of 2 pr"):
        model.make_train_function()
