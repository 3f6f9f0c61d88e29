"""What blocks have in common: calls as they are recorded, sums of moments."""

import keras
import numpy as np
import tensorflow as tf
from classifier import X, compiled

import tfkfac


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
