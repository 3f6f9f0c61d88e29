"""Depthwise and separable convolutions, against K-FAC in float64 NumPy."""

import numpy as np
import pytest
from keras import layers
from oracle import ONE_UPDATE, single

import tfkfac

# Size of the image, kernel size, other arguments.
PLANES = {
    "3x3": ((5, 4), 3, {}),
    "2x2 same": ((4, 5), 2, {"padding": "same"}),
    "oblong": ((5, 6), (2, 3), {"depth_multiplier": 2}),
    "strided": ((7, 6), 3, {"strides": 2, "depth_multiplier": 2}),
    "strided same": ((7, 6), 3, {"strides": 2, "padding": "same"}),
    "dilated": ((6, 7), 3, {"dilation_rate": 2}),
    "dilated same": (
        (5, 6),
        2,
        {"dilation_rate": 2, "padding": "same", "depth_multiplier": 2},
    ),
    "kernel beyond image": ((3, 2), 5, {"padding": "same"}),
    "1x1": ((3, 4), 1, {"depth_multiplier": 2}),
    "no bias": ((5, 4), 3, {"use_bias": False}),
    "no bias same": (
        (5, 4),
        3,
        {"use_bias": False, "padding": "same", "depth_multiplier": 2},
    ),
}
LINES = {
    "3": ((6,), 3, {}),
    "same": ((6,), 4, {"padding": "same", "depth_multiplier": 2}),
    "strided": ((8,), 3, {"strides": 3, "depth_multiplier": 2}),
    "strided same": ((8,), 3, {"strides": 2, "padding": "same"}),
    "dilated": ((8,), 3, {"dilation_rate": 3, "depth_multiplier": 2}),
    "dilated same": ((8,), 4, {"dilation_rate": 2, "padding": "same"}),
    "no bias": ((6,), 3, {"use_bias": False}),
}
SWEEP = [
    *(("2D", *setting) for setting in PLANES.values()),
    *(("1D", *setting) for setting in LINES.values()),
]
NAMES = [*(f"2D {x}" for x in PLANES), *(f"1D {x}" for x in LINES)]
sweep = pytest.mark.parametrize(
    "rank, size, kernel, arguments", SWEEP, ids=NAMES
)


@sweep
def test_depthwise(float64, rank, size, kernel, arguments):
    """Each channel is a group with its own A, G, pi and slice of the bias."""
    kind = getattr(layers, f"DepthwiseConv{rank}")
    layer = kind(kernel, activation="tanh", **arguments)
    assert max(single(layer, (*size, 3), batch=3).run()) < 1e-9


@sweep
def test_separable(float64, rank, size, kernel, arguments):
    """Depthwise without bias, then pointwise with it."""
    kind = getattr(layers, f"SeparableConv{rank}")
    layer = kind(4, kernel, activation="tanh", **arguments)
    assert max(single(layer, (*size, 3), batch=3).run()) < 1e-9


LAYERS = {
    "depthwise": lambda: layers.DepthwiseConv2D(
        2, depth_multiplier=2, activation="tanh"
    ),
    "separable": lambda: layers.SeparableConv2D(
        3, 2, depth_multiplier=2, activation="tanh"
    ),
}
both = pytest.mark.parametrize("kind", LAYERS)


@both
@pytest.mark.parametrize("inverter", ["cholesky", "eigen"])
def test_several_updates(float64, kind, inverter):
    """Three updates with running averages and momentum, in graph mode."""
    case = single(LAYERS[kind](), (4, 3, 3), batch=12, run_eagerly=False)
    case.batch = 4
    case.options = ONE_UPDATE | {"momentum": 0.9, "inverter": inverter}
    assert max(case.run()) < 1e-9


@both
def test_sampled(float64, kind):
    """The sampled Fisher, with given targets."""
    case = single(LAYERS[kind](), (4, 3, 3), batch=4)
    case.samples = np.array([2, 0, 1, 2])
    case.likelihood = tfkfac.Categorical
    assert max(case.run()) < 1e-9


@both
def test_below_another(float64, kind):
    """Gradients come through a separable convolution."""
    case = single(LAYERS[kind](), (5, 4, 2), batch=3)
    above = layers.SeparableConv2D(3, 2, strides=2, padding="same")
    case.layers.insert(1, above)
    assert max(case.run()) < 1e-9


@both
def test_float32(kind):
    """float32 keeps 1e-5 where the damped factors are well conditioned."""
    case = single(LAYERS[kind](), (4, 3, 3), batch=8)
    case.x = case.x.astype("float32")
    case.options = ONE_UPDATE | {"damping": 1.0}
    assert max(case.run()) < 1e-5
    assert case.condition() <= 100
