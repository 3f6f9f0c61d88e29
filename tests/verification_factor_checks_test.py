"""Factors: faults are found and named, and right ones pass."""

import dataclasses

import classifier
import keras
import numpy as np
import pytest
import tensorflow as tf
import verified
from keras import layers
from verified import OwnConvolution, OwnDense, failures, registered

import tfkfac
from tfkfac.blocks import DenseBlock
from tfkfac.estimator import Estimator


def test_factor_of_means_in_place_of_sums():
    with registered(OwnDense, verified.Averaged):
        report = verified.verify_square()
    found = failures(report, "input factor")
    assert list(found) == ["hidden"]
    assert "divided by 16" in found["hidden"]
    assert "Averaged" in found["hidden"]
    assert list(failures(report, "output factor")) == ["hidden"]


def test_estimator_that_does_not_divide_by_the_batch(monkeypatch):
    def ones(block, moments, count):
        return [tf.ones([], m.total.dtype) for m in moments]

    monkeypatch.setattr(Estimator, "_divisors_of", staticmethod(ones))
    report = verified.verify_square()
    found = failures(report, "input factor")
    assert sorted(found) == ["hidden", "logits"]
    assert all("multiplied by 16" in text for text in found.values())
    assert not report.ok


def test_factors_that_are_swapped():
    with registered(OwnDense, verified.Swapped):
        square, images = verified.verify_square(), verified.verify_images()
    assert "A and G swapped" in failures(square, "input factor")["hidden"]
    text = failures(images, "input factor")["logits"]  # Of other shapes.
    assert text.startswith("A and G are swapped")
    assert "Swapped" in text and "(1, 37, 37)" in text


def test_rows_that_do_not_end_in_one():
    with registered(OwnDense, verified.WithoutOne):
        report = verified.verify_square()
    (text,) = failures(report, "input factor").values()
    assert text.startswith("the bias column is missing")
    assert failures(report, "output factor") == {}


def test_strides_that_are_ignored():
    with registered(OwnConvolution, verified.WithoutStrides):
        report = verified.verify_images()
    found = failures(report, "input factor")
    assert list(found) == ["conv"]
    assert "strides" in found["conv"] and "WithoutStrides" in found["conv"]


class Reversed(tfkfac.KroneckerBlock):
    """Its output rows have their columns in another order."""

    activation_is_last = True

    def __init__(self, layer):
        d_in, d_out = layer.kernel.shape
        super().__init__(
            layer, layer.kernel, layer.bias, d_in=d_in, d_out=d_out
        )

    def input_rows(self, inputs):
        return tf.reshape(inputs, [1, -1, self.d_in])

    def output_rows(self, outputs):
        return tf.reshape(outputs[..., ::-1], [1, -1, self.d_out])


def test_columns_in_another_order():
    with registered(OwnDense, Reversed):
        report = verified.verify_square()
    assert list(failures(report)) == ["hidden"]
    assert list(failures(report, "output factor")) == ["hidden"]


def many_layers():
    """Layers whose rows, groups and columns lie in all ways."""
    inputs = keras.Input((6, 5, 4))
    x = layers.Conv2D(6, 3, groups=2, strides=2, padding="same")(inputs)
    x = layers.DepthwiseConv2D(2, depth_multiplier=2, activation="tanh")(x)
    x = layers.Conv2DTranspose(3, 3, strides=2, use_bias=False)(x)
    x = layers.SeparableConv2D(4, 2, dilation_rate=2)(x)
    x = layers.GroupNormalization(2)(layers.PReLU(shared_axes=[1, 2])(x))
    x = layers.Reshape((-1, 4))(x)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    shared = layers.Dense(4, activation="tanh", name="shared")
    x = layers.Flatten()(shared(layers.LayerNormalization()(shared(x))))
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


def test_layers_of_many_kinds_pass():
    x = np.random.default_rng(0).normal(size=(5, 6, 5, 4))
    model, _ = classifier.compiled(many_layers(), norm_curvature="unitwise")
    report = verified.first_step(model, x.astype("float32"), np.arange(5) % 3)
    assert report.ok, str(report)
    checks = [f.check for f in report.findings if f.result == "ok"]
    assert checks.count("input factor") == checks.count("output factor") == 11
    assert checks.count("factor") == 3


def test_masked_tokens_and_diagonal_factors_pass():
    tokens = keras.Input((7,), dtype="int32")
    embedding = layers.ReversibleEmbedding(30, 6, mask_zero=True)
    x = layers.Dense(6, activation="tanh", name="hidden")(embedding(tokens))
    model = keras.Model(tokens, embedding(x, reverse=True))
    model, _ = classifier.compiled(model, max_factor_size=6)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 30, (8, 7)) * rng.integers(0, 2, (8, 7))
    report = verified.first_step(model, x, x)
    assert report.ok, str(report)
    checks = [f.check for f in report.findings if f.result == "ok"]
    assert checks.count("input factor") == checks.count("output factor") == 2


def test_half_precision_passes():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model, _ = classifier.compiled()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    report = verified.first_step(model, classifier.X, classifier.Y)
    assert report.ok, str(report)


class Unmasked(DenseBlock):
    """It takes all rows, whatever the mask."""

    def mask_rows(self, inputs, mask):
        return None


class UnmaskedMoments(DenseBlock):
    """Likewise, without a word."""

    def moments(self, uses, product_dtype, dtype):
        uses = [dataclasses.replace(use, mask=None) for use in uses]
        return super().moments(uses, product_dtype, dtype)


STEPS = np.random.default_rng(0).normal(size=(4, 5, 4)).astype("float32")
STEPS[:, 3:] = 0  # Which `Masking` masks.


@pytest.mark.parametrize("block", [Unmasked, UnmaskedMoments])
def test_mask_that_the_block_ignores(block):
    inputs = keras.Input((5, 4))
    hidden = OwnDense(3, name="hidden")(layers.Masking()(inputs))
    with registered(OwnDense, block):
        model, _ = classifier.compiled(keras.Model(inputs, hidden))
        report = verified.first_step(model, STEPS, np.ones((4, 5)))
    assert list(failures(report)) == ["hidden"]
    text = failures(report, "rows")["hidden"]
    assert (
        "leaves 12 of 20 rows" in text and f"{block.__name__} takes 20" in text
    )


def test_masks_of_positions_that_a_layer_joins_pass():
    inputs = keras.Input((5, 4))
    x = layers.Masking()(inputs)
    joined = [
        layers.Conv1D(4, 3, padding="same")(x),
        layers.EinsumDense("abc,bd->adc", output_shape=(5, 4))(x),
    ]
    apart = layers.EinsumDense("...x,xy->...y", output_shape=(4,), name="e")(x)
    x = layers.Flatten()(layers.add([*joined, apart]))
    model = keras.Model(inputs, layers.Dense(3)(x))
    model, _ = classifier.compiled(model)
    report = verified.first_step(model, STEPS, np.arange(4) % 3)
    assert report.ok, str(report)
