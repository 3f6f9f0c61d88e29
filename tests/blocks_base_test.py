"""What blocks have in common: calls as they are recorded, sums of moments."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from classifier import X, compiled

import tfkfac
from tfkfac.blocks import DenseBlock, LayerCall, Moment


def test_an_activation_within_an_own_layer_stays_there(monkeypatch):
    class Negative(keras.layers.Layer):
        activation = None

        def build(self, shape):
            self.activation = keras.activations.relu
            self.w = self.add_weight(shape=(shape[-1], 3), name="w")

        def call(self, inputs):
            return -self.activation(keras.ops.matmul(inputs, self.w))

    class Block(tfkfac.KroneckerBlock):
        def __init__(self, layer):
            super().__init__(layer, layer.w, None, d_in=4, d_out=3)

        def input_rows(self, inputs):
            return inputs[tf.newaxis]

        def output_rows(self, outputs):
            return outputs[tf.newaxis]

    blocks = dict(tfkfac.registry._BLOCKS)
    monkeypatch.setattr(tfkfac.registry, "_BLOCKS", blocks)
    tfkfac.register(Negative, Block)
    model = keras.Sequential([keras.Input((4,)), Negative()])
    model, _ = compiled(model, compile_settings={"run_eagerly": True})
    with tf.GradientTape():
        recorded = model(X, training=True)
    np.testing.assert_array_equal(recorded, model(X))


def test_moments_over_the_rows_of_all():
    parts = [
        Moment(tf.fill([1, 2], x), tf.constant(x)) for x in (1.0, 2.0, 4.0)
    ]
    found = Moment.sum(parts)
    np.testing.assert_array_equal(found.total, [[7, 7]])
    assert float(found.rows) == 7 and float(parts[0].rows) == 1


def test_a_scale_whose_square_is_not_finite():
    """It is multiplied twice: 1e-30 times 1e20 squared is 1e10."""
    use = LayerCall(keras.layers.Dense(1), X, None, X)
    moment = tf.constant([1e-30])
    assert use.times_square_of_scale(moment) is moment
    use.scale = tf.constant(1e20, tf.float64)
    found = use.times_square_of_scale(moment)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, 1e10, rtol=1e-5)


@pytest.mark.parametrize("last", [True, False])
def test_what_is_recorded_is_before_the_activation(last):
    """Where the block says that the call ends in it."""

    class Block(DenseBlock):
        activation_is_last = last

    layer = keras.layers.Dense(3, activation="tanh")
    layer.build(X.shape)
    kept = []

    def keep(use):
        kept.append(use)
        return 2 * use.pre_activation

    x = tf.constant(X)
    found = Block.record(layer, layer.call, keep, x, (), {"training": True})
    s = X @ layer.kernel.numpy() + layer.bias.numpy()
    seen = s if last else np.tanh(s)
    np.testing.assert_allclose(kept[0].pre_activation, seen, rtol=1e-5)
    expected = np.tanh(2 * s) if last else 2 * np.tanh(s)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert kept[0].layer is layer and kept[0].inputs is x
    assert layer.activation is keras.activations.tanh


def test_an_activation_comes_back_after_an_error():
    layer = keras.layers.Dense(3, activation="tanh")
    layer.build(X.shape)
    with pytest.raises(tf.errors.InvalidArgumentError):
        DenseBlock.record(
            layer, layer.call, None, tf.zeros([2, 9]), (), {"training": True}
        )
    assert layer.activation is keras.activations.tanh


def test_uses_of_a_block_are_those_of_its_layer_and_part():
    layer, other = keras.layers.Dense(3), keras.layers.Dense(3)
    layer.build(X.shape)
    block = DenseBlock(layer)
    assert block.is_of(LayerCall(layer, X, None, X))
    assert not block.is_of(LayerCall(layer, X, None, X, part="more"))
    assert not block.is_of(LayerCall(other, X, None, X))


def test_sizes_in_words():
    layer = keras.layers.Dense(3)
    layer.build(X.shape)
    block = DenseBlock(layer)
    assert block.describe() == "5, 3"
    block.limit_factors(4)
    assert block.describe() == "5 diagonal, 3"
    block.factors[1].groups = 2
    assert block.describe() == "5 diagonal, 2 x 3"
