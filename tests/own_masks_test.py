"""Which rows of layers of one's own a Keras mask masks, as far as it is known,
against K-FAC in float64."""

import hand
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from oracle import element_error
from own_models import Function, eagerly
from wrapped import SETTINGS, kfac, randomized

B, T, D, U = 4, 3, 5, 4
KEEP = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
RNG = np.random.default_rng(0)


def silu(product, x):
    return product("w", ops.silu(x))


def softmax(product, x):
    return product("w", tf.nn.softmax(x))


def concatenated(product, x):
    return product("w", tf.concat([x, tf.square(x)], -1))


def scaled_by_mean(product, x):
    square = tf.reduce_mean(tf.square(x), -1, keepdims=True)
    return product("w", x * tf.math.rsqrt(1 + square))


def gated(product, x):
    a, b = tf.split(product("w", x), 2, -1)
    return product("v", a * tf.sigmoid(b))


CALLS = {
    silu: {"w": (D, U)},
    softmax: {"w": (D, U)},
    concatenated: {"w": (2 * D, U)},
    scaled_by_mean: {"w": (D, U)},
    gated: {"w": (D, 4), "v": (2, U)},
}


def trained(call, shapes, masked, eager):
    """Returns the largest error of the weights after two updates."""
    keras.utils.clear_session(free_memory=False)

    def of_layer(layer, x):
        return call(lambda name, a: a @ getattr(layer, name), x)

    own = Function(shapes, of_layer, name="own")
    own.supports_masking = True
    last = layers.Dense(3)
    inputs = keras.Input((T, D))
    model = keras.Model(inputs, last(own(layers.Masking()(inputs))))
    randomized(*model.trainable_variables)
    kfac(model, eager)

    def current():
        found = {name: getattr(own, name).numpy() for name in shapes}
        return {**found, "last": hand.stacked(last.kernel, last.bias)}

    by_hand = hand.Hand(current(), {*shapes, "last"}, **SETTINGS)
    for _ in range(2):
        x = RNG.normal(size=(B, T, D)) * KEEP[..., np.newaxis]
        y = RNG.integers(0, 3, size=(B, T))

        def forward(h, x=x, y=y):
            mask = KEEP if masked else None
            s = call(lambda name, a: h.product(name, a, mask), tf.constant(x))
            s = h.product("last", s, KEEP)
            return hand.cross_entropy(s[KEEP], y[KEEP])

        by_hand.update(forward, KEEP.sum())
        model.train_on_batch(x, y)
    return max(
        element_error(value, by_hand.W[path])
        for path, value in current().items()
    )


@eagerly
@pytest.mark.parametrize("call", CALLS)
def test_rows_that_are_known(float64, call, eager, caplog):
    """Of what is done at each position by itself."""
    assert trained(call, CALLS[call], True, eager) < 1e-9
    assert "masks" not in caplog.text


@eagerly
def test_rows_that_are_not_known_count_and_are_told_once(
    float64, eager, caplog
):
    def reordered(product, x):
        return product("w", tf.gather(x, [2, 1, 0], axis=1))

    assert trained(reordered, {"w": (D, U)}, False, eager) < 1e-9
    texts = [record.getMessage() for record in caplog.records]
    assert len([t for t in texts if "own: which rows" in t and "'w'" in t]) == 1


@eagerly
def test_a_scale_of_two_examples_in_a_row_has_no_block(float64, eager, capsys):
    """Of the examples twice, one after the other, in a graph as eagerly."""

    def twice(layer, x):
        return sum(tf.split(tf.concat([x, 2 * x], 0) * layer.g, 2, 0))

    own = Function({"g": (D,)}, twice, name="own")
    model = keras.Sequential([keras.Input((T, D)), own, layers.Dense(3)])
    optimizer = kfac(model, eager)
    model.train_on_batch(RNG.normal(size=(B, T, D)), np.ones((B, T)))
    optimizer.summary()
    assert "own/g: Adam" in capsys.readouterr().out
