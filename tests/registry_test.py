"""Which layer has which block, and what has none."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from classifier import LOSS, X, Y, compiled, flat

import tfkfac


class Scale(keras.layers.Layer):
    """A layer type without a block."""

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")

    def call(self, inputs):
        return inputs * keras.ops.square(self.scale)


def test_unknown_layers_take_the_plain_gradient_and_are_reported(caplog):
    model = keras.Sequential(
        [keras.Input((4,)), Scale(name="scale"), keras.layers.Dense(3)]
    )
    model, optimizer = compiled(
        model, momentum=0.0, kl_clip=None, fallback="gradient"
    )
    lines = []
    optimizer.summary(print_fn=lines.append)
    text = "\n".join(lines)
    assert "no curvature block for Scale: what its call does is seen" in text
    assert "15 of 19 trainable parameters (78.9 %)" in text
    before = model.layers[0].scale.numpy()
    with tf.GradientTape() as tape:
        loss = LOSS(Y, model(X))
    gradient = tape.gradient(loss, model.layers[0].scale.value)
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(
        model.layers[0].scale.numpy(), before - 0.05 * gradient, rtol=1e-5
    )
    assert "Scale: its call uses it in Square" in caplog.text
    assert "plain gradient" in caplog.text


def test_skipped_layers_take_the_plain_gradient():
    model, optimizer = compiled(skip=["logits"], fallback="gradient")
    names = list(optimizer.curvature.state())
    assert any(x.startswith("hidden/") for x in names)
    assert not any(x.startswith("logits/") for x in names)
    model.train_on_batch(X, Y)


class Linear(keras.layers.Layer):
    """An own layer with s = W^T a."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 3), name="w")

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.w)


def test_a_block_for_an_own_layer(monkeypatch):
    class LinearBlock(tfkfac.KroneckerBlock):
        def __init__(self, layer):
            d_in, d_out = layer.w.shape
            super().__init__(layer, layer.w, None, d_in=d_in, d_out=d_out)

        def input_rows(self, inputs):
            return inputs[tf.newaxis]

        def output_rows(self, outputs):
            return outputs[tf.newaxis]

    monkeypatch.setattr(
        tfkfac.registry, "_BLOCKS", dict(tfkfac.registry._BLOCKS)
    )
    tfkfac.register(Linear, LinearBlock)
    results = []
    for layer in (Linear(), keras.layers.Dense(3, use_bias=False)):
        model = keras.Sequential([keras.Input((4,)), layer])
        model.set_weights([np.arange(12).reshape(4, 3) / 12])
        model, _ = compiled(model)
        for _ in range(3):
            model.train_on_batch(X, Y)
        results.append(flat(model))
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_register_refuses_what_is_no_class_of_its_kind():
    with pytest.raises(TypeError, match="CurvatureBlock"):
        tfkfac.register(Linear, Linear)
    with pytest.raises(TypeError, match="layers"):
        tfkfac.register(tfkfac.KroneckerBlock, tfkfac.KroneckerBlock)


def test_subclass_that_overrides_call_has_no_block():
    class Doubled(keras.layers.Dense):
        def call(self, inputs, training=None):
            return 2 * super().call(inputs, training=training)

    model = keras.Sequential([keras.Input((4,)), Doubled(3)])
    _, optimizer = compiled(model)
    lines = []
    optimizer.summary(print_fn=lines.append)
    assert "no curvature block for Doubled" in lines[0]


def test_attention_is_covered_and_every_factor_moves():
    inputs = keras.Input((6, 8))
    x = keras.layers.MultiHeadAttention(2, 4)(inputs, inputs)
    x = keras.layers.Dense(3)(keras.layers.Flatten()(x))
    model, optimizer = compiled(keras.Model(inputs, x))
    lines = []
    optimizer.summary(print_fn=lines.append)
    assert "(100.0 %) in 5 blocks" in lines[0]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 6, 8)).astype("float32")
    model.train_on_batch(x, Y)
    first = optimizer.curvature.state()
    model.train_on_batch(x[::-1] * 2, Y)
    for name, value in optimizer.curvature.state().items():
        if name.endswith("/moment"):
            assert np.abs(value - first[name]).max() > 1e-3 * value.max(), name
