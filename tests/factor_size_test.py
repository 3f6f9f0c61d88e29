"""`max_factor_size`, against K-FAC in float64 NumPy."""

import keras
import numpy as np
import pytest
from keras import layers
from oracle import ONE_UPDATE, single

import tfkfac
from tfkfac import factor_sizes

inverters = pytest.mark.parametrize("inverter", ["cholesky", "eigen"])


def limited(layer, shape, size, inverter, batch=4, count=4):
    case = single(layer, shape, batch=count)
    case.batch = batch
    limits = {"max_factor_size": size, "inverter": inverter}
    case.options = ONE_UPDATE | limits | {"momentum": 0.9}
    return case


# A has side 6 with the bias, G 4; above lies a layer of sides 5 and 3.
@inverters
@pytest.mark.parametrize("size", [1, 3, 4, 5, 6])
@pytest.mark.parametrize("use_bias", [True, False])
def test_dense(float64, inverter, size, use_bias):
    """A longer side is diagonal, one of that size is not."""
    layer = layers.Dense(4, use_bias=use_bias, activation="tanh")
    assert max(limited(layer, (5,), size, inverter).run()) < 1e-9


@inverters
@pytest.mark.parametrize("size", [2, 8, 9])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution(float64, inverter, size, groups):
    """So it is for patches, and for each of the groups."""
    layer = layers.Conv2D(4, 2, groups=groups, activation="tanh")
    assert max(limited(layer, (4, 3, 4), size, inverter).run()) < 1e-9


@inverters
def test_depthwise(float64, inverter):
    """The sides are those of one channel."""
    layer = layers.DepthwiseConv2D(2, depth_multiplier=2, activation="tanh")
    case = limited(layer, (4, 3, 3), 4, inverter)
    assert max(case.run()) < 1e-9


@inverters
def test_several_updates(float64, inverter):
    """Three updates in graph mode."""
    layer = layers.Dense(4, activation="tanh")
    case = limited(layer, (5,), 4, inverter, count=12)
    case.run_eagerly = False
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("size", [7, 8])
def test_norm(float64, size):
    """The full curvature of a norm layer is a factor too."""
    case = limited(layers.Dense(4), (5,), size, "cholesky")
    case.layers.insert(1, layers.LayerNormalization())
    case.keras_options = {"norm_curvature": "full"}
    assert max(case.run()) < 1e-9


def test_float32():
    """float32 keeps 1e-5 where the damped factors are well conditioned."""
    case = limited(layers.Dense(4, activation="tanh"), (5,), 4, "cholesky", 8)
    case.x = case.x.astype("float32")
    case.options |= {"damping": 1.0}
    assert max(case.run()) < 1e-5
    assert case.condition() <= 100


def test_unitwise_blocks_of_normalization():
    """Of 2 x 2 blocks, 1 leaves the diagonal."""
    found = []
    for options in (
        {"norm_curvature": "unitwise", "max_factor_size": 1},
        {"norm_curvature": "diagonal", "max_factor_size": 1},
    ):
        norm = layers.LayerNormalization()
        case = single(norm, (5,), batch=4)
        model = case._model()
        case.keras_options = ONE_UPDATE | options
        case._compile(model)
        model.train_on_batch(case.x, case.y)
        found.append(np.concatenate([norm.gamma, norm.beta]))
    np.testing.assert_array_equal(*found)


def test_long_sides_are_diagonal_by_default_and_reported(caplog):
    """Once, with what that saves and the argument that changes it."""
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(6000, use_bias=False, name="wide")]
    )
    optimizer = tfkfac.KFAC(model=model)
    optimizer.summary(print_fn=lambda text: None)
    messages = [record.getMessage() for record in caplog.records]
    (said,) = [text for text in messages if "6,000" in text]
    assert "wide/output_factor (6,000)" in said
    mebibytes = round(2 * 4 * (6000**2 - 6000) / 2**20)
    assert f"{mebibytes} MiB of state" in said
    assert f"{2 * 6000**3 / 1e9:,.1f} GFLOP for each inversion" in said
    assert f"{2 * 6000**2 * 2 / 1e9:.1f} GFLOP for each update" in said
    assert "KFAC(max_factor_size=None)" in said
    assert optimizer.curvature.nbytes() < 2**20
    lines = []
    optimizer.summary(lines.append)
    assert "6000 diagonal" in lines[0] and said.partition(": ")[2] in lines[0]


def test_no_bound_and_a_bound_that_holds_say_nothing():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(6, name="o")])
    for size in (None, 6, factor_sizes.DEFAULT):
        lines = []
        tfkfac.KFAC(model=model, max_factor_size=size).summary(lines.append)
        assert "max_factor_size" not in lines[0]
        assert "diagonal" not in lines[0]
