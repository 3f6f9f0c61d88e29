"""What a call of a recurrent layer goes by, and what it returns."""

import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfkfac.recurrence import calls

D, U, B, T = 3, 2, 4, 5
RNG = np.random.default_rng(0)
X = tf.constant(RNG.normal(size=(B, T, D)).astype("float32"))


def test_outputs_as_one_tensor_and_back():
    y, h = tf.random.normal([B, T, U]), tf.random.normal([B, U])
    assert calls.joined([y]) is y
    nested = [y, [h, 2 * h]]
    together = calls.joined(nested)
    assert together.shape == [B, T * U + 2 * U]
    parts = calls.separated(together, calls.shapes_of(nested))
    again = calls.separated_as(together, nested)
    for part, expected in zip(parts, (y, h, 2 * h)):
        np.testing.assert_array_equal(part, expected)
    np.testing.assert_array_equal(again[0], y)
    np.testing.assert_array_equal(again[1][1], 2 * h)
    assert calls.separated(h, calls.shapes_of(h))[0] is h


def test_cells_from_the_inputs_on():
    single, stack = layers.LSTM(U), [layers.GRUCell(U), layers.LSTMCell(U)]
    assert calls.cells_of(single) == [single.cell]
    assert calls.cells_of(layers.RNN(stack)) == stack


def test_loops_of_ones_own():
    class Renamed(layers.LSTM):
        pass

    class Own(layers.LSTM):
        def inner_loop(self, *args, **options):
            return super().inner_loop(*args, **options)

    for kind, stock in ((layers.GRU, True), (Renamed, True), (Own, False)):
        assert calls.has_stock_loop(kind(U)) == stock


def test_what_a_call_goes_by():
    """Zeros to begin with, or what is given; no dropout but in training."""
    layer = layers.LSTM(U, dropout=0.5)
    layer.build(X.shape)
    found = calls.note(layer, X, {"training": False, "mask": None})
    assert [s.shape for s in found.states] == [[B, U]] * 2
    assert not any(np.any(s) for s in found.states) and found.mask is None
    (weights,) = found.weights
    np.testing.assert_array_equal(weights.kernel, layer.cell.kernel)
    assert not weights.dropout and not weights.recurrent_dropout
    h, c = (tf.fill([B, U], x) for x in (1.0, 2.0))
    keep = tf.ones([B, T], tf.bool)
    options = {"training": True, "mask": [keep, None],
               "initial_state": [h, c]}  # fmt: skip
    found = calls.note(layer, X, options)
    np.testing.assert_array_equal(found.states, [h, c])
    assert found.mask is keep
    (mask,) = found.weights[0].dropout
    assert set(np.unique(mask)) <= {0.0, 2.0}


def test_a_stateful_layer_begins_where_it_ended():
    layer = layers.SimpleRNN(U, stateful=True)
    layer.build(X.shape)
    last = layer(X)
    (state,) = calls.note(layer, X, {}).states
    np.testing.assert_array_equal(state, last)
    assert not np.array_equal(state, layer(X))


@pytest.mark.parametrize("use_bias", [True, False])
def test_weights_have_the_type_of_the_cell(use_bias):
    layer = layers.GRU(U, use_bias=use_bias, dtype="mixed_float16")
    layer.build(X.shape)
    (weights,) = calls.note(layer, tf.cast(X, "float16"), {}).weights
    assert weights.kernel.dtype == tf.float16
    assert (weights.bias is None) == (not use_bias)
