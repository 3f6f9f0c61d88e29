"""The graph of a step that is never run: state, and what has no block."""

import keras
import numpy as np
import pytest
from keras import layers
from planned_models import LOSS, TOKENS, convolutional, dense, tokens

import tfkfac


@pytest.mark.parametrize(
    "build, settings",
    [
        (dense, {}),
        (
            dense,
            {"inverter": "eigen", "skip": ["first"], "fallback": "gradient"},
        ),
        (convolutional, {}),
        (convolutional, {"norm_curvature": "unitwise"}),
        (convolutional, {"norm_curvature": "full", "inverter": "eigen"}),
        (convolutional, {"norm_curvature": "full", "max_factor_size": 10}),
        (tokens, {}),
        (tokens, {"tied": "balanced", "norm_curvature": "full"}),
    ],
)
def test_bytes_are_those_of_the_state(build, settings):
    """By layer; and over the ranks, but for a flag of one byte."""
    model = build()
    inputs = TOKENS if build is tokens else None
    planned = tfkfac.plan(model, inputs=inputs, ranks=3, **settings)
    curvature = tfkfac.KFAC(model=model, **settings).curvature
    for layer in planned.layers:
        expected = curvature.nbytes(layer.path + "/")
        assert layer.factor_bytes + layer.inverse_bytes == expected, layer.path
        assert bool(expected) == (layer.block != "plain gradient")
    assert curvature.nbytes() - 1 == sum(
        rank.factor_bytes + rank.inverse_bytes for rank in planned.ranks
    )
    assert planned.parameters == sum(x.parameters for x in planned.layers)


def test_the_model_stays_as_it_is():
    """Of a subclass, attached to an optimizer, with a layer with a loop."""

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = layers.Embedding(9, 4)
            self.recurrent = layers.LSTM(3)
            self.out = layers.Dense(2, activity_regularizer="l2")

        def call(self, x):
            return self.out(self.recurrent(self.embedding(x)))

    model = Model()
    x, y = np.ones([4, 5], "int32"), np.zeros([4], "int32")
    model(x)
    alone = tfkfac.plan(model, budget=0.01)
    model.compile(tfkfac.KFAC(model=model), LOSS)
    first = model.train_on_batch(x, y)
    weights, call = model.get_weights(), model.out.__dict__["call"]
    assert tfkfac.plan(model, budget=0.01) == alone
    for before, after in zip(weights, model.get_weights()):
        np.testing.assert_array_equal(before, after)
    assert model.out.__dict__["call"] is call
    assert np.isfinite(model.train_on_batch(x, y)) and np.isfinite(first)
    assert int(model.optimizer.iterations) == 2
    _, recurrent, _ = alone.layers
    assert recurrent.parameters == 4 * 3 * (4 + 3 + 1)
    # Its loops count: five steps of both products and their gradients.
    assert recurrent.gradient_flops == 5 * 3 * 2 * 32 * 12 * (4 + 3)
    assert alone.uncounted == []
    text = str(alone)
    assert "Not counted: " not in text and "EmbeddingBlock" in text
    # U for V alone takes more.
    assert alone.suggested is None and "No periods meet" in text


def test_what_has_no_block():
    """A rematerialized layer: its products count, and it has no state."""

    class Remat(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = layers.Dense(4, name="first")
            self.again = keras.remat(self.first)
            self.second = layers.Dense(2, name="second")

        def call(self, x):
            return self.second(self.again(x))

    model = Remat()
    model(np.zeros([3, 7], "float32"))
    planned = tfkfac.plan(model, batch_size=3)
    second, kernel, bias = planned.layers
    assert second.path == "second" and kernel.parameters == 28
    assert kernel.block == bias.block == "Adam"
    assert kernel.factor_bytes == kernel.inverse_bytes == 0
    rest = planned.step("gradient").flops - second.gradient_flops
    # Forward twice, and the kernel's gradient.
    assert rest == 3 * (2 * 3 * 7 * 4)


def test_a_layer_that_no_gradient_comes_to():
    """Its forward pass counts alone."""

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = layers.Dense(4, name="first")
            self.second = layers.Dense(4, name="second")

        def call(self, x):
            return self.second(x) + keras.ops.stop_gradient(self.first(x))

    model = Model()
    model(np.zeros([3, 7], "float32"))
    product = 2 * 3 * 7 * 4
    planned = tfkfac.plan(model, batch_size=3)
    found = [(x.path, x.gradient_flops, x.factor_flops) for x in planned.layers]
    # The kernel has a gradient, the inputs have none.
    statistics = 2 * 3 * (7**2 + 4**2)
    assert found == [("first", product, 0), ("second", 2 * product, statistics)]
    assert planned.step("gradient").flops == 3 * product
