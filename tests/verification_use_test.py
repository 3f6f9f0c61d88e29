"""Derivatives of a call of a layer: those of its bias, wherever it is added."""

import classifier
import keras
import numpy as np
import own_models
import pytest
import tensorflow as tf
import verified
from keras import layers, ops
from own_models import Function

import tfkfac
from tfkfac.attached_model import attached_to
from tfkfac.blocks.own import ProductBlock

RNG = np.random.default_rng(0)
PRODUCT = {"w": (4, 5), "b": (5,)}


def two_products(layer, x):
    h = ops.tanh(x @ layer.w + layer.b)
    return h @ layer.v + layer.c


CASES = {
    "operators": (PRODUCT, lambda o, x: x @ o.w + o.b),
    "on the left": (PRODUCT, lambda o, x: o.b + x @ o.w),
    "add": (PRODUCT, lambda o, x: ops.add(ops.matmul(x, o.w), o.b)),
    "bias_add": (PRODUCT, lambda o, x: tf.nn.bias_add(x @ o.w, o.b)),
    "einsum": (PRODUCT, lambda o, x: ops.einsum("...i,ij->...j", x, o.w) + o.b),
    "activation": (PRODUCT, lambda o, x: ops.relu(x @ o.w + o.b)),
    "a bias in another shape": (
        {"w": (4, 5), "b": (5, 1)},
        lambda o, x: x @ o.w + ops.reshape(o.b, (5,)),
    ),
    "a product in another shape": (
        {"w": (4, 6), "b": (2, 3)},
        lambda o, x: ops.reshape(x @ o.w, (-1, *x.shape[1:-1], 2, 3)) + o.b,
    ),
    "two products": (
        {"w": (4, 5), "b": (5,), "v": (5, 3), "c": (3,)},
        two_products,
    ),
    "a bias of two products": (
        {"w": (4, 5), "v": (4, 5), "b": (5,)},
        lambda o, x: x @ o.w + o.b + ops.tanh(x @ o.v),
    ),
    "scale and shift": (
        {"gamma": (4,), "beta": (4,)},
        lambda o, x: x * (1 + o.gamma) + o.beta,
    ),
}


def compiled(layer, shape, **options):
    """A functional model with the layer between two others."""
    x = keras.Input(shape)
    y = layers.Masking()(x) if options.pop("masked", False) else x
    y = layer(layers.Dense(4)(y))
    y = layers.Dense(3)(layers.Flatten()(y))
    return classifier.compiled(keras.Model(x, y), **options)[0]


def batch(shape):
    return RNG.normal(size=(6, *shape)).astype("float32"), np.arange(6) % 3


def verified_report(model, shape):
    report = tfkfac.verify(model, *batch(shape), graph=False)
    blocks = [
        b for a in attached_to(model) for b in a.layers.registration.blocks
    ]
    assert len([b for b in blocks if len(b.variables) > 1]) > 2
    return report


@pytest.mark.parametrize("shape", [(4,), (3, 4)], ids=["rows", "time"])
@pytest.mark.parametrize("case", CASES)
def test_biases_of_own_layers(case, shape):
    weights, call = CASES[case]
    model = compiled(Function(weights, call, name="own"), shape)
    report = verified_report(model, shape)
    assert report.ok, str(report)


def test_convolutions_with_a_bias():
    weights = {"w": (2, 2, 4, 5), "b": (5,)}
    own = Function(weights, lambda o, x: ops.conv(x, o.w, strides=2) + o.b)
    report = verified_report(compiled(own, (5, 4, 4)), (5, 4, 4))
    assert report.ok, str(report)


def test_a_masked_layer():
    own = Function(PRODUCT, lambda o, x: x @ o.w + o.b)
    own.supports_masking = True
    model = compiled(own, (3, 4), masked=True)
    x, y = batch((3, 4))
    x[:3, 1:] = 0
    report = tfkfac.verify(model, x, y, graph=False)
    assert report.ok, str(report)


def test_low_rank():
    dense = layers.Dense(5)
    model = compiled(dense, (4,))
    dense.enable_lora(2)
    model = classifier.compiled(model)[0]
    report = verified_report(model, (4,))
    assert report.ok, str(report)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        own = Function(PRODUCT, lambda o, x: x @ o.w + o.b)
        report = verified_report(compiled(own, (3, 4)), (3, 4))
    finally:
        keras.config.set_dtype_policy("float32")
    assert report.ok, str(report)


class Declared(own_models.Own):
    """A layer whose product is declared."""


def test_a_declared_product_before_and_after_training():
    tfkfac.register_linear(Declared, kernel="w", bias="b")
    model = compiled(Declared(), (4,))
    report = verified_report(model, (4,))
    assert report.ok, str(report)
    model.fit(*batch((4,)), verbose=0)
    report = verified_report(model, (4,))
    assert report.ok, str(report)


def test_a_block_with_twice_the_factor_fails(monkeypatch):
    exact = ProductBlock._moments_of

    def doubled(self, *arguments):
        A, G = exact(self, *arguments)
        A.total = 2 * A.total
        return A, G

    monkeypatch.setattr(ProductBlock, "_moments_of", doubled)
    own = Function(PRODUCT, lambda o, x: x @ o.w + o.b, name="own")
    report = tfkfac.verify(compiled(own, (4,)), *batch((4,)), graph=False)
    found = verified.failures(report, "input factor")
    assert list(found) == ["own/w"] and "2 times" in found["own/w"]
    assert not verified.failures(report, "gradient V")


def test_a_layer_that_leaves_the_bias_out_fails(monkeypatch):
    """The rows of the block then end in 0."""
    exact = ProductBlock.input_moment

    def without(self, *arguments):
        A = exact(self, *arguments)
        keep = tf.one_hot(A.shape[-1] - 1, A.shape[-1], 0.0, 1.0)
        return A * keep[:, tf.newaxis] * keep

    monkeypatch.setattr(ProductBlock, "input_moment", without)
    own = Function(PRODUCT, lambda o, x: x @ o.w + o.b, name="own")
    report = tfkfac.verify(compiled(own, (4,)), *batch((4,)), graph=False)
    found = verified.failures(report, "input factor")
    assert "bias column is missing" in found["own/w"]
