"""Products of second moments with vectors."""

import types

import keras
import numpy as np
import tensorflow as tf

from tfkfac.blocks import DenseBlock, LayerCall
from tfkfac.capture.records import Recorded
from tfkfac.verification.sums import (
    UseSums,
    masked,
    matrix_shape,
    output_product,
)
from tfkfac.verification.use import Use

RNG = np.random.default_rng(0)


def use(mask=None):
    """A call of a dense layer on [2, 3, 4], with gradients at [2, 3, 5]."""
    layer = keras.layers.Dense(5, activation="tanh")
    layer.build((None, 3, 4))
    x = tf.constant(RNG.normal(size=(2, 3, 4)), tf.float32)
    with tf.GradientTape(persistent=True) as tape:
        s = tf.matmul(x, layer.kernel.value) + layer.bias.value
    g = tf.constant(RNG.normal(size=(2, 3, 5)), tf.float32)
    call = LayerCall(layer, x, mask, s)
    return Use(call, Recorded(call, {}, s, []), tape, g), DenseBlock(layer)


def test_dense_layer_by_its_derivative():
    of_use, block = use()
    sums = UseSums(of_use, block, False, RNG)
    assert matrix_shape(block) == (1, 5, 5) and sums.rows == 6
    a = np.array(of_use.call.inputs).reshape(6, 4)
    a = np.concatenate([a, np.ones([6, 1])], axis=1)
    u = RNG.normal(size=(1, 5))
    np.testing.assert_allclose(
        sums.input_product(u)[0], a.T @ a @ u[0], rtol=1e-5
    )
    g = np.array(of_use.gradient).reshape(1, 6, 5)
    np.testing.assert_array_equal(sums.output_rows(), g)


def test_masked_rows_are_left_out():
    mask = tf.constant([[True, False, True], [True, True, False]])
    of_use, block = use(mask)
    sums = UseSums(of_use, block, False, RNG)
    kept = np.array(mask).ravel()
    assert sums.rows == 4
    a = np.array(of_use.call.inputs).reshape(6, 4)[kept]
    a = np.concatenate([a, np.ones([4, 1])], axis=1)
    u = RNG.normal(size=(1, 5))
    np.testing.assert_allclose(
        sums.input_product(u)[0], a.T @ a @ u[0], rtol=1e-5
    )
    assert not sums.output_rows()[0, ~kept].any()


def test_mask_of_other_axes_is_none():
    call = types.SimpleNamespace(
        mask=tf.ones([2, 4], tf.bool), layer=None, inputs=None, saved=None
    )
    source = tf.zeros([2, 3, 5])
    assert masked(types.SimpleNamespace(call=call, source=source)) is None


def test_output_product():
    g, v = RNG.normal(size=(2, 7, 3)), RNG.normal(size=(2, 3))
    G = np.einsum("gri,grj->gij", g, g)
    np.testing.assert_allclose(
        output_product(g, v, False), np.einsum("gij,gj->gi", G, v)
    )
    diagonal = np.diagonal(G, axis1=1, axis2=2)
    np.testing.assert_allclose(output_product(g, v, True), diagonal * v)
