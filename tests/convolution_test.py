"""One update of convolutions, against K-FAC in float64 NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from oracle import ONE_UPDATE, Case, single
from patch_loops import loops

from tfkfac.blocks import convolution
from tfkfac.convolution.patches import Window

RNG = np.random.default_rng(0)

# Size of the image, filters, kernel size, other arguments.
PLANES = {
    "3x3": ((5, 4), 3, {}),
    "3x3 same": ((5, 4), 3, {"padding": "same"}),
    "1x1": ((3, 4), 1, {}),
    "1x1 strided": ((5, 4), 1, {"strides": 2}),
    "1x1 strided same": ((5, 4), 1, {"strides": 3, "padding": "same"}),
    "2x2": ((4, 5), 2, {}),
    "2x2 same": ((4, 5), 2, {"padding": "same"}),
    "4x4": ((6, 5), 4, {}),
    "4x4 same": ((6, 5), 4, {"padding": "same"}),
    "5x5 same": ((6, 7), 5, {"padding": "same"}),
    "oblong": ((5, 6), (2, 3), {}),
    "oblong same": ((5, 4), (3, 2), {"padding": "same"}),
    "row": ((4, 5), (1, 3), {"padding": "same"}),
    "column": ((4, 5), (4, 1), {}),
    "even and strided": ((5, 6), 2, {"strides": 2}),
    "even and strided same": ((5, 7), 4, {"strides": 2, "padding": "same"}),
    "strided": ((7, 6), 3, {"strides": 2}),
    "strided same, odd": ((7, 5), 3, {"strides": 2, "padding": "same"}),
    "strided same, even": ((6, 4), 3, {"strides": 2, "padding": "same"}),
    "stride 3 same": ((8, 7), 3, {"strides": 3, "padding": "same"}),
    "oblong strides": ((7, 6), 3, {"strides": (3, 1), "padding": "same"}),
    "other oblong strides": ((6, 7), (2, 3), {"strides": (1, 2)}),
    "stride beyond kernel": ((7, 8), 2, {"strides": 3}),
    "stride beyond kernel same": ((7, 8), 2, {"strides": 4, "padding": "same"}),
    "stride beyond image": ((4, 3), 2, {"strides": 5}),
    "stride beyond image same": ((4, 3), 3, {"strides": 5, "padding": "same"}),
    "border never seen": ((6, 6), 3, {"strides": 2}),
    "kernel is image": ((3, 4), (3, 4), {}),
    "kernel is image same": ((3, 4), (3, 4), {"padding": "same"}),
    "kernel beyond image": ((3, 2), 5, {"padding": "same"}),
    "kernel far beyond image": ((3, 2), 7, {"padding": "same"}),
    "even kernel beyond image": ((2, 3), 6, {"padding": "same"}),
    "strided beyond image": ((3, 4), 7, {"strides": 2, "padding": "same"}),
    "kernel beyond one side": ((2, 6), 3, {"padding": "same"}),
    "one pixel": ((1, 1), 3, {"padding": "same"}),
    "one pixel wide": ((5, 1), 3, {"padding": "same"}),
    "one pixel 1x1": ((1, 1), 1, {}),
    "dilated": ((6, 7), 3, {"dilation_rate": 2}),
    "dilated same": ((6, 5), 3, {"dilation_rate": 2, "padding": "same"}),
    "dilated even": ((5, 6), 2, {"dilation_rate": 3}),
    "dilated even same": ((5, 4), 2, {"dilation_rate": 3, "padding": "same"}),
    "dilated oblong": ((6, 7), (2, 3), {"dilation_rate": (3, 2)}),
    "dilated one side": (
        (5, 6),
        3,
        {"dilation_rate": (1, 2), "padding": "same"},
    ),
    "dilated 4x4 same": ((6, 7), 4, {"dilation_rate": 2, "padding": "same"}),
    "dilated beyond image": (
        (3, 4),
        3,
        {"dilation_rate": 4, "padding": "same"},
    ),
    "dilated past the image": (
        (1, 5),
        (4, 3),
        {"dilation_rate": (2, 1), "padding": "same", "use_bias": False},
    ),
    "dilated 1x1": ((3, 4), 1, {"dilation_rate": 2}),
    "no bias": ((5, 4), 3, {"use_bias": False}),
    "no bias same": ((5, 4), 3, {"use_bias": False, "padding": "same"}),
    "no bias strided": (
        (5, 6),
        3,
        {"use_bias": False, "strides": 2, "padding": "same"},
    ),
}

LINES = {
    "3": ((6,), 3, {}),
    "same": ((6,), 4, {"padding": "same"}),
    "causal": ((6,), 3, {"padding": "causal"}),
    "causal even": ((5,), 4, {"padding": "causal"}),
    "causal strided": ((7,), 3, {"padding": "causal", "strides": 2}),
    "causal dilated": ((7,), 3, {"padding": "causal", "dilation_rate": 2}),
    "causal beyond": ((3,), 5, {"padding": "causal", "use_bias": False}),
    "strided": ((8,), 3, {"strides": 3}),
    "strided same": ((8,), 5, {"strides": 3, "padding": "same"}),
    "stride beyond kernel": ((9,), 2, {"strides": 4, "padding": "same"}),
    "dilated": ((8,), 3, {"dilation_rate": 3}),
    "dilated same": ((8,), 4, {"dilation_rate": 2, "padding": "same"}),
    "kernel beyond": ((3,), 8, {"padding": "same"}),
    "1": ((4,), 1, {"use_bias": False}),
}

VOLUMES = {
    "2x2x2": ((3, 4, 3), 2, {}),
    "3x3x3 same": ((3, 2, 4), 3, {"padding": "same"}),
    "oblong": ((3, 4, 3), (1, 2, 3), {"use_bias": False}),
    "strided": ((5, 4, 3), 2, {"strides": (2, 1, 2)}),
    "strided same": ((5, 4, 3), 3, {"strides": 2, "padding": "same"}),
    "dilated": ((4, 3, 5), 2, {"dilation_rate": (1, 2, 3)}),
    "dilated same": (
        (3, 4, 2),
        2,
        {"dilation_rate": 2, "padding": "same"},
    ),
    "kernel beyond": ((2, 1, 3), 4, {"padding": "same"}),
}

GROUPS = {
    "two": ((4, 3), 3, {"groups": 2, "padding": "same"}),
    "of one channel": ((3, 4), 2, {"groups": 4, "use_bias": False}),
    "strided": ((5, 4), 3, {"groups": 2, "strides": 2, "padding": "same"}),
}


def sweep(settings):
    return pytest.mark.parametrize(
        "size, kernel, arguments", settings.values(), ids=settings.keys()
    )


@sweep(PLANES)
def test_conv2d(float64, size, kernel, arguments):
    """Every window, stride, padding and dilation gives the same update."""
    layer = layers.Conv2D(3, kernel, activation="tanh", **arguments)
    assert max(single(layer, (*size, 2)).run()) < 1e-9


@sweep(LINES)
def test_conv1d(float64, size, kernel, arguments):
    """So it is in one dimension, causal padding included."""
    layer = layers.Conv1D(3, kernel, activation="tanh", **arguments)
    assert max(single(layer, (*size, 2)).run()) < 1e-9


@sweep(VOLUMES)
def test_conv3d(float64, size, kernel, arguments):
    """So it is in three dimensions."""
    layer = layers.Conv3D(2, kernel, activation="tanh", **arguments)
    assert max(single(layer, (*size, 2)).run()) < 1e-9


@sweep(GROUPS)
def test_groups(float64, size, kernel, arguments):
    """Each group has its own factors, pi and slice of the bias."""
    layer = layers.Conv2D(8, kernel, activation="tanh", **arguments)
    assert max(single(layer, (*size, 4)).run()) < 1e-9


def test_groups_with_exact_damping(float64):
    """Each group has its own eigenbasis."""
    layer = layers.Conv2D(8, 2, groups=2, activation="tanh")
    case = single(layer, (4, 3, 4))
    case.options = ONE_UPDATE | {"inverter": "eigen"}
    assert max(case.run()) < 1e-9


def test_groups_in_one_dimension(float64):
    """Groups go with dilation and causal padding too."""
    layer = layers.Conv1D(
        4, 3, groups=2, dilation_rate=2, padding="causal", activation="tanh"
    )
    assert max(single(layer, (6, 6)).run()) < 1e-9


@pytest.mark.parametrize("size, window", [((9, 8), 3), ((8, 9), 5)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_conv2d_of_many_channels(float64, size, window, padding):
    """Larger images and more channels, where other algorithms may be taken."""
    layer = layers.Conv2D(2, window, padding=padding, activation="relu")
    assert max(single(layer, (*size, 7), batch=3).run()) < 1e-9


@pytest.mark.parametrize(
    "settings", [{}, {"padding": "same"}, {"strides": 2}, {"dilation_rate": 2}]
)
def test_conv2d_float32(settings):
    """float32 keeps 1e-5 where the damped factors are well conditioned."""
    layer = layers.Conv2D(3, 3, activation="tanh", **settings)
    case = single(layer, (7, 6, 2), batch=8)
    case.x = case.x.astype("float32")
    case.options = ONE_UPDATE | {"damping": 1.0}
    assert max(case.run()) < 1e-5
    assert case.condition() <= 100


def test_channels_first(float64):
    """Images may have their channels first; CPUs run them under XLA only."""
    layer = layers.Conv2D(
        3, 3, strides=2, data_format="channels_first", activation="tanh"
    )
    case = single(layer, (2, 5, 9), jit_compile=True)
    assert max(case.run()) < 1e-9


def test_stacked_convolutions(float64):
    """Gradients reach a convolution through another one."""
    case = single(
        layers.Conv2D(3, 3, strides=2, padding="same", activation="relu"),
        (7, 6, 2),
        batch=3,
    )
    second = layers.Conv2D(4, 2, padding="same", activation="tanh")
    case.layers.insert(1, second)
    assert max(case.run()) < 1e-9


def test_a_term_for_each_pixel(float64):
    """Where each position has a loss term, N is their number and A a mean."""
    rng = np.random.default_rng(0)
    stack = [
        layers.Conv2D(3, 3, padding="same", activation="tanh"),
        layers.Conv2D(2, 2, padding="same"),
    ]
    case = Case(
        stack,
        x=rng.normal(size=(2, 4, 3, 2)),
        y=rng.normal(size=(2, 4, 3, 2)),
        weights=rng.uniform(size=(2, 4, 3)),
        loss=keras.losses.MeanSquaredError(),
        options=ONE_UPDATE,
    )
    assert max(case.run()) < 1e-9


def test_shared_convolution(float64):
    """The uses of a shared layer may differ in their positions."""
    layer = layers.Conv2D(2, 3, strides=2, padding="same", activation="tanh")
    case = single(layer, (6, 5, 2), batch=3)
    case.layers.insert(1, layer)
    assert max(case.run()) < 1e-9


def test_no_patches_in_the_step(monkeypatch):
    """The block takes this way by itself, for half-precision inputs too."""

    def refuse(*_):
        raise AssertionError("patches were built")

    monkeypatch.setattr(convolution.patches, "extract", refuse)
    x = RNG.normal(size=(2, 9, 9, 3)).astype("float16")
    layer = keras.layers.Conv2D(4, 3, padding="same")
    layer.build(x.shape)
    block = convolution.ConvolutionBlock(layer)
    window = Window((3, 3), (1, 1), (1, 1), "same")
    a = loops(x.astype("float64"), window).reshape(-1, 27)
    a = np.concatenate([a, np.ones([len(a), 1])], axis=1)
    found = block.input_moment(
        tf.constant(x), None, len(a), tf.float32, tf.float32
    )
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found[0], a.T @ a, rtol=1e-4, atol=1e-3)
