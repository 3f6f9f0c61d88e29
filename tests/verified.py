"""Models, and blocks of one's own with a fault, for the tests of `verify`."""

import functools

import classifier
import keras
import numpy as np
from keras import layers

import tfkfac
from tfkfac import registry
from tfkfac.blocks import ConvolutionBlock, DenseBlock

RNG = np.random.default_rng(3)
IMAGES = RNG.normal(size=(6, 7, 6, 2)).astype("float32")
LABELS = RNG.integers(0, 3, 6)


class OwnDense(layers.Dense):
    """A layer whose block a test can choose."""


class OwnConvolution(layers.Conv2D):
    """Likewise."""


@functools.cache
def _tables():
    return registry._BLOCKS


class registered:
    """Within it, layers of a type have this block."""

    def __init__(self, layer_type, block_type):
        self._types = layer_type, block_type

    def __enter__(self):
        tfkfac.register(*self._types)

    def __exit__(self, *_):
        _tables().pop(self._types[0])


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


def verify_images(**options):
    """Verifies `images`, eagerly alone."""
    return tfkfac.verify(images(), IMAGES, LABELS, graph=False, **options)


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


def verify_square(**options):
    return tfkfac.verify(
        square(), classifier.X, classifier.Y, graph=False, **options
    )


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
