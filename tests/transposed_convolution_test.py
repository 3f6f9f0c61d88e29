"""Transposed convolutions, against K-FAC in float64 NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from mirrors import mirror
from oracle import ONE_UPDATE, single

import tfkfac

RNG = np.random.default_rng(0)
KINDS = {
    1: layers.Conv1DTranspose,
    2: layers.Conv2DTranspose,
    3: layers.Conv3DTranspose,
}
# Size of the input, kernel size, other arguments.
SETTINGS = {
    "line": ((5,), 3, {}),
    "line same": ((5,), 3, {"padding": "same"}),
    "line even same": ((5,), 4, {"padding": "same"}),
    "line strided": ((4,), 5, {"strides": 3}),
    "line strided same": ((4,), 4, {"strides": 2, "padding": "same"}),
    "line of one": ((1,), 3, {"strides": 2, "padding": "same"}),
    "line dilated": ((4,), 3, {"dilation_rate": 2}),
    "line dilated same": (
        (4,),
        3,
        {"dilation_rate": 2, "padding": "same", "use_bias": False},
    ),
    "plane": ((3, 4), 3, {}),
    "plane same": ((3, 4), 3, {"padding": "same"}),
    "plane 1x1": ((3, 2), 1, {}),
    "plane 1x1 strided": ((3, 2), 1, {"strides": 2, "padding": "same"}),
    "plane strided": ((3, 4), 3, {"strides": 2}),
    "plane strided same": ((3, 4), 3, {"strides": 2, "padding": "same"}),
    "plane 4x4 strided same": ((3, 2), 4, {"strides": 2, "padding": "same"}),
    "plane 5x5 strided same": ((3, 2), 5, {"strides": 2, "padding": "same"}),
    "plane 2x2 strided": ((3, 4), 2, {"strides": 2, "use_bias": False}),
    "plane stride beyond kernel": ((3, 2), 2, {"strides": 3}),
    "plane stride beyond kernel same": (
        (3, 2),
        2,
        {"strides": 4, "padding": "same"},
    ),
    "plane oblong": (
        (3, 4),
        (2, 3),
        {"strides": (3, 1), "padding": "same", "use_bias": False},
    ),
    "plane longer": ((3, 2), 3, {"strides": 3, "output_padding": (0, 2)}),
    "plane longer same": (
        (3, 2),
        3,
        {"strides": 2, "output_padding": (1, 0), "padding": "same"},
    ),
    "plane longer same, even": (
        (3, 2),
        2,
        {"strides": 4, "output_padding": (1, 3), "padding": "same"},
    ),
    "plane of one, longer same": (
        (1, 1),
        3,
        {"strides": 3, "output_padding": 0, "padding": "same"},
    ),
    "plane dilated": ((3, 4), 2, {"dilation_rate": (2, 3)}),
    "plane dilated same": (
        (3, 4),
        3,
        {"dilation_rate": 2, "padding": "same"},
    ),
    "volume": ((2, 3, 2), 2, {}),
    "volume same": ((2, 3, 2), 3, {"padding": "same"}),
    "volume strided": ((2, 1, 2), (2, 3, 1), {"strides": (2, 2, 1)}),
    "volume strided same": (
        (2, 2, 1),
        3,
        {"strides": (2, 1, 3), "padding": "same", "use_bias": False},
    ),
    "volume longer": (
        (1, 2, 2),
        2,
        {"strides": (2, 3, 1), "output_padding": (1, 2, 0)},
    ),
    "volume dilated": ((2, 2, 2), 2, {"dilation_rate": (2, 1, 1)}),
}
settings = pytest.mark.parametrize(
    "size, kernel, arguments", SETTINGS.values(), ids=SETTINGS
)


def make(size, kernel, arguments, filters=3, **more):
    return KINDS[len(size)](filters, kernel, **arguments, **more)


def is_dilated(arguments):
    """Dilated ones run in float64 under XLA only."""
    return "dilation_rate" in arguments


def random_weights(layer):
    rng = np.random.default_rng(1)
    for v in layer.trainable_variables:
        v.assign(rng.normal(size=v.shape))


@settings
def test_the_layer_is_this_map(float64, size, kernel, arguments):
    """s = W^T a at each output position."""
    layer = make(size, kernel, arguments)
    x = RNG.normal(size=(2, *size, 2))
    layer.build(x.shape)
    random_weights(layer)
    (stage,) = mirror(layer, x.shape)
    call = tf.function(layer, jit_compile=True)
    found = (call if is_dilated(arguments) else layer)(tf.constant(x))
    np.testing.assert_allclose(found, stage.forward(x), rtol=1e-9, atol=1e-12)


@settings
def test_one_update(float64, size, kernel, arguments):
    """Every stride, padding and dilation gives the same factors and U."""
    layer = make(size, kernel, arguments, activation="tanh")
    case = single(layer, (*size, 2), jit_compile=is_dilated(arguments))
    assert max(case.run()) < 1e-9
