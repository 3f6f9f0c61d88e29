"""Transposed convolutions, against K-FAC in float64 NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from mirrors import mirror
from oracle import ONE_UPDATE, single

import tfkfac
from tfkfac.blocks import TransposedConvolutionBlock

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
    "line dilated even same": (
        (4,),
        4,
        {"dilation_rate": 3, "padding": "same"},
    ),
    "line dilated, no longer": (
        (4,),
        3,
        {"dilation_rate": 2, "padding": "same", "output_padding": 0},
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


def make(size, kernel, arguments, filters=3, **more):
    return KINDS[len(size)](filters, kernel, **arguments, **more)


# In float64 TensorFlow runs these under XLA alone on CPUs.
DILATED = {x: s for x, s in SETTINGS.items() if "dilation_rate" in s[2]}
NOT_DILATED = {x: s for x, s in SETTINGS.items() if x not in DILATED}


def each(settings):
    return pytest.mark.parametrize(
        "size, kernel, arguments", settings.values(), ids=settings
    )


def random_weights(layer):
    rng = np.random.default_rng(1)
    for v in layer.trainable_variables:
        v.assign(rng.normal(size=v.shape))


@each(SETTINGS)
def test_the_layer_is_this_map(float64, size, kernel, arguments):
    """s = W^T a at each output position."""
    layer = make(size, kernel, arguments)
    x = RNG.normal(size=(2, *size, 2))
    layer.build(x.shape)
    random_weights(layer)
    (stage,) = mirror(layer, x.shape)
    is_dilated = "dilation_rate" in arguments
    call = tf.function(layer, jit_compile=True) if is_dilated else layer
    found = call(tf.constant(x))
    np.testing.assert_allclose(found, stage.forward(x), rtol=1e-9, atol=1e-12)


@each(NOT_DILATED)
def test_one_update(float64, size, kernel, arguments):
    """Every stride and padding gives the same factors, inverses and U."""
    layer = make(size, kernel, arguments, activation="tanh")
    assert max(single(layer, (*size, 2)).run()) < 1e-9


def in_float32(layer, shape, **arguments):
    """A case whose damped factors are well conditioned."""
    case = single(layer, shape, batch=8, **arguments)
    case.x = case.x.astype("float32")
    case.options = ONE_UPDATE | {"damping": 1.0}
    return case


STRIDED = ((3, 4), 3, {"strides": 2, "padding": "same"})


@each(DILATED | {"plane strided same": STRIDED})
def test_float32(size, kernel, arguments):
    """float32 keeps 1e-5 where the damped factors are well conditioned."""
    layer = make(size, kernel, arguments, activation="tanh")
    case = in_float32(layer, (*size, 2))
    assert max(case.run()) < 1e-5
    assert case.condition() <= 100


def test_dilated_under_xla(float64):
    layer = make(*DILATED["line dilated"], activation="tanh")
    assert max(single(layer, (4, 2), jit_compile=True).run()) < 1e-9


def strided(**arguments):
    return layers.Conv2DTranspose(
        3, 3, strides=2, padding="same", activation="tanh", **arguments
    )


@pytest.mark.parametrize("run_eagerly", [True, False], ids=["eager", "graph"])
@pytest.mark.parametrize("inverter", ["cholesky", "eigen"])
def test_three_updates(float64, run_eagerly, inverter):
    """With running averages and momentum."""
    case = single(strided(), (3, 2, 2), batch=12, run_eagerly=run_eagerly)
    case.batch = 4
    case.options = ONE_UPDATE | {"momentum": 0.9, "inverter": inverter}
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("run_eagerly", [True, False], ids=["eager", "graph"])
def test_sampled(float64, run_eagerly):
    """The sampled Fisher, with given targets, over three updates."""
    case = single(strided(), (3, 2, 2), batch=12, run_eagerly=run_eagerly)
    case.batch, case.samples = 4, np.array([2, 0, 1, 2])
    case.likelihood = tfkfac.Categorical
    assert max(case.run()) < 1e-9


def test_stacked_and_shared(float64):
    """Gradients come through another one; the second use is larger."""
    case = single(strided(), (2, 1, 3), batch=3)
    case.layers.insert(1, case.layers[0])
    case.layers.insert(2, layers.Conv2D(2, 3, strides=2, activation="relu"))
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("size, inverter", [(18, "cholesky"), (2, "eigen")])
def test_diagonal_factors(float64, size, inverter):
    """A, of side 19, or both factors are kept as diagonals."""
    case = single(strided(), (3, 2, 2), batch=4)
    limits = {"max_factor_size": size, "inverter": inverter}
    case.options = ONE_UPDATE | limits
    assert max(case.run()) < 1e-9


# The methods of the second moment.


def input_moment(shape, x, without_patches=True):
    """Returns (the sum of a a^T, the methods of its phases)."""
    keras.utils.clear_session(free_memory=False)
    layer = layers.Conv2DTranspose(2, 4, strides=2, padding="same")
    keras.Model(inputs := keras.Input(shape), layer(inputs))
    block = TransposedConvolutionBlock(layer)
    block.without_patches = without_patches
    signature = [tf.TensorSpec([None, *shape], x.dtype)]

    @tf.function(input_signature=signature)
    def moment(x):
        dtype = tf.float64
        return block.input_moment(x, None, 1.0, dtype, dtype)

    return moment(x).numpy(), block.describe_method(tf.float64)


@pytest.mark.parametrize("shape", [(9, 8, 4), (15, 14, 160)])
def test_methods_agree(float64, shape):
    """Patches, with and without a known size, and what is chosen."""
    x = RNG.normal(size=(2, *shape))
    found, method = input_moment(shape, x)
    expected, patches = input_moment(shape, x, without_patches=False)
    unknown, several = input_moment((None, None, shape[-1]), x)
    assert method == ("frequencies" if shape[-1] > 100 else "convolution")
    assert patches == "patches"
    assert several == (
        "patches, convolution or frequencies by the size of its input"
    )
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-12 * scale)
    np.testing.assert_allclose(unknown, expected, atol=1e-12 * scale)


@pytest.mark.parametrize("shape", [(9, 8, 4), (None, None, 4)])
def test_no_examples(float64, shape):
    found, _ = input_moment(shape, np.zeros([0, 9, 8, 4]))
    assert found.shape == (1, 65, 65)
    assert np.abs(found[:, :-1]).max() == 0
