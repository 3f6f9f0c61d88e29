"""Columns of the kernels of recurrent cells: matrices, windows, methods."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfkfac.blocks import RecurrentBlock
from tfkfac.blocks.base import LayerCall

RNG = np.random.default_rng(0)


def parts_of(layer, *shape):
    layer.build((None, *shape))
    return RecurrentBlock(layer).members


@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.GRU(2, recurrent_dropout=0.5), (4, 3)),
        (layers.ConvLSTM2D(2, 3, dropout=0.5), (4, 5, 6, 3)),
    ],
)
def test_the_parts_of_a_kernel_are_the_kernel(layer, shape):
    """Each is zero in the columns of the others, forth and back."""
    found: dict[int, list] = {}
    variables = {}
    for part in parts_of(layer, *shape):
        given = [tf.constant(RNG.normal(size=v.shape)) for v in part.variables]
        matrix = part.to_matrix(given)
        side = part.factors[0].dim, part.factors[1].dim
        assert matrix.shape == (1, *side)
        for v, x, own in zip(part.variables, given, part.from_matrix(matrix)):
            kept = own != 0
            np.testing.assert_array_equal(own[kept], x[kept])
            variables[id(v)] = v
            found.setdefault(id(v), []).append(kept)
    for key, masks in found.items():
        count = sum(tf.cast(kept, tf.int32) for kept in masks)
        np.testing.assert_array_equal(count, tf.ones(variables[key].shape))


def film(space=(9, 8), channels=4, **options):
    options = {"strides": 2, "padding": "same"} | options
    layer = layers.ConvLSTM2D(2, 3, **options)
    return parts_of(layer, 4, *space, channels)


def test_windows():
    """That of the states has stride 1, and the states are smaller."""
    kernel, recurrent = film()
    assert kernel._window().strides == (2, 2)
    assert kernel._symbolic_spaces() == [(9, 8)]
    assert recurrent._window().strides == (1, 1)
    assert recurrent._window().padding == "same"
    assert recurrent._symbolic_spaces() == [(5, 4)]


def moment(part, x, mask=None):
    use = LayerCall(part.layer, x, mask, None)
    shape = [*x.shape[:2], *part._symbolic_spaces()[0], part.d_out]
    use.gradient, use.saved = tf.zeros(shape, x.dtype), {}
    if part.kernel is part.layer.cell.kernel:
        use.gradient = use.gradient[:, :, ::2, ::2]
    return part.moments([use], x.dtype, x.dtype)[0]


@pytest.mark.parametrize("which", [0, 1])
def test_a_mask_of_positions_that_keeps_all_is_none(which):
    """Rows by patches have the moment of convolutions."""
    part = film()[which]
    x = RNG.normal(size=(3, 2, *part._symbolic_spaces()[0], part.d_in // 9))
    expected = moment(part, tf.constant(x))
    ones = tf.ones([3, 2, 1, 1], tf.bool)
    found = moment(part, tf.constant(x), ones)
    assert found.rows == expected.rows == 3 * 2 * 5 * 4
    scale = np.abs(expected.total).max()
    np.testing.assert_allclose(found.total, expected.total, atol=1e-12 * scale)


def test_no_examples():
    kernel, _ = film()
    found = moment(kernel, tf.zeros([3, 0, 9, 8, 4], tf.float64))
    assert found.total.shape == (1, 37, 37) and found.rows == 0
    assert np.abs(found.total[:, :-1]).max() == 0


def test_methods_are_described():
    def described(layer, *shape):
        layer.build((None, *shape))
        return RecurrentBlock(layer).describe_method(tf.float32)

    assert described(layers.LSTM(3), 4, 3) == ""
    layer = layers.ConvLSTM2D(40, 3, padding="same")
    assert described(layer, 4, 16, 16, 4) == "convolution and frequencies"
    keras.utils.clear_session(free_memory=False)
    assert described(layers.ConvLSTM2D(2, 1), 4, 5, 5, 3) == "patches"
