"""Layers of elementwise scales, against K-FAC in float64 NumPy."""

import keras
import numpy as np
import pytest
from keras import layers
from oracle import ONE_UPDATE, single

import tfkfac

# Shape of the inputs, and the layer.
SCALES = {
    "root mean square": ((3, 4), layers.RMSNormalization, {}),
    "root mean square, two axes": (
        (3, 2, 4),
        layers.RMSNormalization,
        {"axis": (2, 3), "epsilon": 0.1},
    ),
    "slopes": ((4,), layers.PReLU, {}),
    "slopes of images": ((3, 2, 4), layers.PReLU, {}),
    "slopes of channels": ((3, 2, 4), layers.PReLU, {"shared_axes": [1, 2]}),
    "one slope": ((3, 4), layers.PReLU, {"shared_axes": [1, 2]}),
}


def scaled(kind, count=4, options=None, **arguments):
    """A case of a scale between two layers with weights."""
    shape, layer, settings = SCALES[kind]
    case = single(layers.Dense(shape[-1]), (*shape[:-1], 3), count, **arguments)
    case.layers[1:1] = [layer(**settings), layers.Activation("tanh")]
    case.options = ONE_UPDATE | (options or {})
    return case


@pytest.mark.parametrize("kind", SCALES)
def test_scales(float64, kind):
    """F = (1/N) sum_i p_i p_i^T, its diagonal."""
    assert max(scaled(kind).run()) < 1e-9


@pytest.mark.parametrize("inverter", ["cholesky", "eigen"])
@pytest.mark.parametrize("kind", ["root mean square", "slopes of channels"])
def test_several_updates(float64, kind, inverter):
    """Three updates in graph mode; no pi, no root, norm_damping."""
    options = {"momentum": 0.9, "norm_damping": 1e-2, "inverter": inverter}
    case = scaled(kind, 12, options)
    case.batch = 4
    case.run_eagerly = False
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("kind", ["root mean square", "slopes of channels"])
def test_sampled(float64, kind):
    samples = np.array([2, 0, 1, 2])
    case = scaled(kind, samples=samples, likelihood=tfkfac.Categorical)
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("kind", ["root mean square", "slopes of channels"])
def test_float32(kind):
    case = scaled(kind, 8, {"damping": 1.0})
    case.x = case.x.astype("float32")
    assert max(case.run()) < 1e-5
    assert case.condition() <= 100


@pytest.mark.filterwarnings("ignore:.*does not support mask.*")
def test_masked_rows(float64):
    """Masked positions are left out of p, though not of V."""
    case = scaled("root mean square")
    case.x[0, 1:] = case.x[2, 2] = 0
    case.layers.insert(0, layers.Masking())
    assert max(case.run()) < 1e-9


def test_all_of_the_fisher_of_slopes_is_never_kept():
    """Without shared axes they are as many as an example has numbers."""
    model = keras.Sequential([keras.Input((4, 5)), layers.PReLU(name="slope")])
    optimizer = tfkfac.KFAC(0.1, norm_curvature="full", model=model)
    assert optimizer.curvature["slope/factor/moment"].shape == (1, 20)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.RMSNormalization(name="norm"),
            layers.PReLU(name="slope"),
            layers.Dense(3, name="logits"),
        ]
    )
    optimizer = tfkfac.KFAC(0.01, model=model)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x = np.random.default_rng(0).normal(size=(8, 4))
    model.fit(x, np.arange(8) % 3, verbose=0)
    for name, value in optimizer.curvature.state().items():
        assert np.isfinite(value).all(), name
    for name in ("norm", "slope"):
        assert optimizer.curvature[f"{name}/factor/moment"].numpy().any()
