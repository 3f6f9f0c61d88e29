"""Models, and blocks of one's own with a fault, for the tests of `verify`."""

import contextlib

import classifier
import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tfkfac
from tfkfac import registry
from tfkfac.attached_model import attached_to
from tfkfac.blocks import ConvolutionBlock, DenseBlock
from tfkfac.verification import Report, verifier

RNG = np.random.default_rng(3)
IMAGES = RNG.normal(size=(6, 7, 6, 2)).astype("float32")
LABELS = RNG.integers(0, 3, 6)


class OwnDense(layers.Dense):
    """A layer whose block a test can choose."""


class OwnConvolution(layers.Conv2D):
    """Likewise."""


@contextlib.contextmanager
def registered(layer_type, block_type):
    """Within it, layers of a type have this block."""
    tfkfac.register(layer_type, block_type)
    try:
        yield
    finally:
        registry._BLOCKS.pop(layer_type)


def images(**settings):
    """A strided convolution, a norm and a dense layer, compiled."""
    model = keras.Sequential(
        [
            keras.Input(IMAGES.shape[1:]),
            OwnConvolution(
                3, 2, strides=2, padding="same", activation="tanh", name="conv"
            ),
            layers.BatchNormalization(name="norm"),
            layers.Flatten(),
            OwnDense(3, name="logits"),
        ]
    )
    return classifier.compiled(model, **settings)[0]


def verification(model):
    return verifier.Verification(model, attached_to(model), model.train_step, 0)


def first_step(model, x, y):
    """Returns the report of the first step alone, which takes less time."""
    check = verification(model)
    check.first_step((tf.constant(x), tf.constant(y)))
    return Report(model.name, check.findings, 0.0)


def verify_images():
    return first_step(images(), IMAGES, LABELS)


def square(**settings):
    """A dense layer with as many inputs, with the 1, as outputs."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            OwnDense(5, activation="tanh", name="hidden"),
            layers.Dense(3, name="logits"),
        ]
    )
    return classifier.compiled(model, **settings)[0]


def verify_square():
    return first_step(square(), classifier.X, classifier.Y)


def failures(report, check=None):
    """Returns {where: sentence} of what failed."""
    return {
        f.where: f.sentence for f in report.failed if check in (None, f.check)
    }


class Averaged(DenseBlock):
    """Its moments are means over the rows."""

    def moments(self, uses, product_dtype, dtype):
        found = super().moments(uses, product_dtype, dtype)
        for moment in found:
            moment.total = moment.total / moment.rows
        return found


class Swapped(DenseBlock):
    """A is of the gradients, G of the inputs."""

    def moments(self, uses, product_dtype, dtype):
        return super().moments(uses, product_dtype, dtype)[::-1]


class WithoutBias(DenseBlock):
    """The bias is left to the fallback."""

    def __init__(self, layer):
        d_in, d_out = layer.kernel.shape
        super(DenseBlock, self).__init__(
            layer, layer.kernel, None, d_in=d_in, d_out=d_out
        )


class WithoutOne(DenseBlock):
    """The rows end in 0, not in 1."""

    def input_moment(self, inputs, mask, count, product_dtype, dtype):
        A = super().input_moment(inputs, mask, count, product_dtype, dtype)
        keep = np.ones(A.shape[-1], "float32")
        keep[-1] = 0
        return A * keep[:, np.newaxis] * keep


class WithoutStrides(ConvolutionBlock):
    """The patches are those of a convolution with stride 1."""

    def _window(self):
        window = super()._window()
        ones = (1,) * len(window.strides)
        return type(window)(window.size, ones, window.dilation, window.padding)
