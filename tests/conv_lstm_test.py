"""Recurrent convolutions, compared with unrolled ones by hand."""

import keras
import numpy as np
import pytest
from keras import layers
from oracle import ONE_UPDATE, single
from reference_layers import Function

import tfkfac

KINDS = {1: layers.ConvLSTM1D, 2: layers.ConvLSTM2D, 3: layers.ConvLSTM3D}
# Spatial shape, kernel size, other arguments.
SETTINGS = {
    "line": ((4,), 2, {}),
    "line strided": ((5,), 3, {"strides": 2, "padding": "same"}),
    "plane": ((3, 2), 2, {}),
    "plane same": ((3, 2), (3, 2), {"padding": "same", "use_bias": False}),
    "plane strided": ((4, 3), 2, {"strides": (2, 1)}),
    "plane dilated": ((4, 3), 2, {"dilation_rate": (2, 1)}),
    "plane dilated same": ((3, 2), 2, {"dilation_rate": 2, "padding": "same"}),
    "volume": ((2, 1, 2), (2, 1, 2), {"padding": "same"}),
}
each = pytest.mark.parametrize(
    "space, size, arguments", SETTINGS.values(), ids=SETTINGS
)


def make(space, size, arguments, **more):
    return KINDS[len(space)](2, size, **arguments, **more)


def three_updates(layer, *above, batch=3, masks=None, **arguments):
    """A case of 3 steps of 3 x 2 positions, of 2 channels."""
    case = single(layer, (3, 3, 2, 2), batch=3 * batch, **arguments)
    case.batch, case.weights = batch, None
    case.options = ONE_UPDATE | {"momentum": 0.9}
    case.layers[1:1] = above
    if masks is not None:
        keep = np.random.default_rng(3).uniform(size=(3 * batch, 3, 3, 2)) < 0.6
        case.x *= (keep if masks.by_position else keep[:, :, :1, :1])[..., None]
        case.layers.insert(0, masks)
        for x in [layer, *above]:
            x.by_position = masks.by_position
    return case


class MaskZeros(layers.Layer):
    """Masks steps that are 0, or positions in them."""

    def __init__(self, by_position):
        super().__init__()
        self.supports_masking, self.by_position = True, by_position

    def call(self, x):
        return keras.ops.copy(x)

    def compute_mask(self, x, mask=None):
        axes = -1 if self.by_position else tuple(range(2, len(x.shape)))
        return keras.ops.any(x != 0, axis=axes)

    def compute_output_shape(self, shape):
        return shape

    def mirror(self, shape):
        return [Function(lambda x: x, lambda x, g: g)]


@each
def test_one_update(float64, space, size, arguments):
    layer = make(space, size, arguments)
    assert max(single(layer, (2, *space, 2)).run()) < 1e-9


@each
def test_float32(space, size, arguments):
    """Where the damped factors are well conditioned; a long step, so that the
    rounding of the weights is no part of it."""
    case = single(make(space, size, arguments), (2, *space, 2), batch=6)
    case.x = case.x.astype("float32")
    case.options = ONE_UPDATE | {"damping": 1.0, "learning_rate": 100.0}
    assert max(case.run()) < 1e-5
    assert case.condition() <= 100


modes = pytest.mark.parametrize(
    "run_eagerly", [True, False], ids=["eager", "graph"]
)
PLANE = (3, 2), 2, {"padding": "same"}


@pytest.mark.parametrize(
    "run_eagerly, inverter",
    [(True, "cholesky"), (False, "cholesky"), (True, "eigen")],
)
def test_three_updates(float64, run_eagerly, inverter):
    """Of one on another, the lower one backwards, with all its steps."""
    lower = make(*PLANE, return_sequences=True, go_backwards=True)
    upper = layers.ConvLSTM2D(1, 2, return_sequences=True)
    case = three_updates(lower, upper, run_eagerly=run_eagerly)
    case.options |= {"inverter": inverter}
    assert max(case.run()) < 1e-9


@modes
def test_sampled(float64, run_eagerly):
    """The sampled Fisher, with given targets."""
    case = three_updates(make(*PLANE), run_eagerly=run_eagerly)
    case.samples, case.likelihood = np.array([2, 0, 1]), tfkfac.Categorical
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("by_position", [False, True], ids=["steps", "space"])
@pytest.mark.parametrize(
    "run_eagerly, sequences", [(True, False), (True, True), (False, True)]
)
def test_masks(float64, run_eagerly, sequences, by_position):
    """Of steps, and of positions, which "same" padding takes."""
    layer = make(*PLANE, return_sequences=sequences)
    case = three_updates(
        layer, masks=MaskZeros(by_position), run_eagerly=run_eagerly
    )
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("size", [9, 2])
def test_diagonal_factors(float64, size):
    """A of the kernel, of side 9, is kept; or all are diagonals."""
    case = three_updates(make((3, 2), (2, 2), {}))
    case.options |= {"max_factor_size": size}
    assert max(case.run()) < 1e-9
