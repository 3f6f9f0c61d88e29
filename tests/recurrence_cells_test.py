"""Cells on tensors, against Keras' own cells."""

import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfkfac.recurrence import cells
from tfkfac.recurrence.cells import Weights

D, U, B = 3, 2, 4
RNG = np.random.default_rng(0)
KINDS = {
    "simple": (layers.SimpleRNNCell, {}, cells.SimpleCell),
    "lstm": (layers.LSTMCell, {"activation": "elu"}, cells.LSTMCell),
    "gru": (layers.GRUCell, {}, cells.GRUCell),
    "gru_before": (
        layers.GRUCell,
        {"reset_after": False},
        cells.GRUResetBeforeCell,
    ),
}
kinds = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.usefixtures("float64")


def made(kind, **options):
    """Returns (Keras' cell, that on tensors), of random weights."""
    layer_type, more, cell_type = KINDS[kind]
    layer = layer_type(U, **more, **options)
    layer.build((B, D))
    for v in layer.trainable_variables:
        v.assign(RNG.normal(size=v.shape))
    bias = None if layer.bias is None else layer.bias.value
    own = Weights(layer.kernel.value, layer.recurrent_kernel.value, bias)
    assert cells.knows(layer) and cells.cell_type(layer) is cell_type
    return layer, cell_type(layer, own)


@kinds
@pytest.mark.parametrize("use_bias", [True, False])
def test_a_step_is_that_of_keras(kind, use_bias):
    layer, cell = made(kind, use_bias=use_bias)
    x = tf.constant(RNG.normal(size=(B, D)))
    states = [tf.constant(RNG.normal(size=(B, U))) for _ in range(cell.states)]
    found = cell.step(cell.input_product(x), states)
    _, expected = layer(x, states)
    assert len(found) == len(expected) == cell.states
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@kinds
def test_rows_of_the_recurrent_kernel_give_back_its_gradient(kind):
    """dL/dR = sum of a g^T, gate by gate; g at the products with R."""
    _, cell = made(kind)
    R = cell.weights.recurrent_kernel
    s = tf.constant(RNG.normal(size=(B, U * len(cell.gates))))
    states = [tf.constant(RNG.normal(size=(B, U))) for _ in range(cell.states)]
    with tf.GradientTape() as tape:
        tape.watch([s, R])
        after = cell.step(s, states)
        loss = tf.add_n([tf.reduce_sum(x**2) for x in after])
    at_s, expected = tape.gradient(loss, [s, R])
    rows, g = cell.recurrent_rows(s, states[0], at_s)
    columns = tf.split(g, len(cell.gates), axis=1)
    assert len(rows) == len(columns)
    found = [tf.matmul(a, b, transpose_a=True) for a, b in zip(rows, columns)]
    np.testing.assert_allclose(tf.concat(found, 1), expected, rtol=1e-10)


@pytest.mark.parametrize("several", [False, True])
def test_what_is_dropped_before_the_products(several):
    """One mask for all gates, or one for each."""
    _, cell = made("lstm")
    w = cell.weights
    masks = RNG.integers(0, 2, (4 if several else 1, B, D)) / 0.5
    cell.weights = Weights(
        w.kernel, w.recurrent_kernel, w.bias, [*map(tf.constant, masks)]
    )
    x = RNG.normal(size=(B, D))
    rows = cell.input_rows(tf.constant(x))
    assert len(rows) == 4
    columns = np.split(w.kernel.numpy(), 4, axis=1)
    dropped = [x * mask for mask in np.broadcast_to(masks, (4, B, D))]
    for row, value in zip(rows, dropped):
        np.testing.assert_array_equal(row, value)
    expected = np.concatenate([a @ W for a, W in zip(dropped, columns)], 1)
    found = cell.input_product(tf.constant(x))
    np.testing.assert_allclose(found, expected + w.bias.numpy(), rtol=1e-12)


def test_weights_in_another_type():
    _, cell = made("gru")
    found = cell.weights.cast(tf.float32)
    assert found.kernel.dtype == found.bias.dtype == tf.float32
    assert Weights(found.kernel, found.kernel).cast(tf.float64).bias is None


def test_cells_of_ones_own_are_not_known():
    class Own(layers.GRUCell):
        pass

    assert not cells.knows(Own(U)) and not cells.knows(layers.Dense(U))
