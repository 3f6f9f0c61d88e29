"""Half precision, loss scale, XLA: the same numbers as far as they carry."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6, 6, 2)).astype("float32")
Y = RNG.integers(0, 3, 16)
EAGER = {"run_eagerly": True}  # For a step or two, without a trace.
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def policy():
    """Sets the dtype policy for a test."""
    return keras.config.set_dtype_policy


def build(normalization=True):
    layers = [
        keras.Input(X.shape[1:]),
        keras.layers.Conv2D(4, 3, name="conv"),
        keras.layers.Activation("tanh"),
        keras.layers.Flatten(),
        keras.layers.Dense(3, name="logits"),
    ]
    if normalization:
        layers.insert(2, keras.layers.BatchNormalization(name="norm"))
    model = keras.Sequential(layers)
    for i, v in enumerate(model.trainable_variables):
        if v.name in ("kernel", "bias"):
            v.assign(np.random.default_rng(i).normal(size=v.shape) / 3)
    return model


def make(scale=None, compile_settings=None, **settings):
    policy = keras.config.dtype_policy()
    keras.utils.clear_session(free_memory=False)
    keras.config.set_dtype_policy(policy)  # It was cleared too.
    model = build()
    assert model.dtype_policy == policy
    settings = {"damping": 0.1, "inverse_update_period": 3, **settings}
    kfac = optimizer = tfkfac.KFAC(0.02, model=model, **settings)
    if scale is not None:
        optimizer = keras.optimizers.LossScaleOptimizer(
            kfac, initial_scale=scale
        )
    model.compile(optimizer, LOSS, **(compile_settings or {}))
    return model, kfac


def flat(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_graph_eager_and_xla_agree(fisher):
    """Over 20 steps with refreshes in between."""
    losses = []
    for settings in ({}, {"run_eagerly": True}, {"jit_compile": True}):
        model, _ = make(compile_settings=settings, fisher=fisher)
        run = [float(model.train_on_batch(X, Y)) for _ in range(20)]
        losses.append(run)
    assert losses[0][-1] < 0.8 * losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-4)


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
@pytest.mark.parametrize("name", ["float32", "mixed_float16"])
def test_factors_do_not_depend_on_the_loss_scale(policy, name, fisher):
    policy(name)
    states = []
    for scale in (1.0, 2.0 ** (80 if name == "float32" else 15)):
        model, kfac = make(scale, EAGER, fisher=fisher)
        for _ in range(2):
            model.train_on_batch(X, Y)
        assert int(kfac.iterations) == 2
        states.append(kfac.curvature.state())
    tolerance = 1e-5 if name == "float32" else 2e-2
    for key, value in states[0].items():
        if key.endswith("/moment"):
            other = states[1][key]
            error = np.abs(value - other).max() / np.abs(value).max()
            assert error < tolerance, (key, error)


@pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains_like_float32(policy, name):
    model, _ = make()
    expected = [float(model.train_on_batch(X, Y)) for _ in range(20)]
    policy(name)
    model, kfac = make(
        2.0**10 if name == "mixed_float16" else None,
        factor_dtype=name.removeprefix("mixed_"),
    )
    losses = [float(model.train_on_batch(X, Y)) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    np.testing.assert_allclose(losses, expected, rtol=0.1)
    for value in kfac.curvature.state().values():
        assert value.dtype in (np.float32, np.int64, bool)


@pytest.mark.parametrize("eager", [False, True])
def test_a_step_that_the_loss_scale_skips_updates_nothing(policy, eager):
    policy("mixed_float16")
    model, kfac = make(2.0**10, {"run_eagerly": eager})
    model.train_on_batch(X, Y)
    bad = X.copy()
    bad[0] = np.inf
    before = [v.numpy() for v in model.variables]
    state = kfac.curvature.state()
    model.train_on_batch(bad, Y)
    for a, v in zip(before, model.variables):
        np.testing.assert_array_equal(a, v.numpy())
    for key, value in kfac.curvature.state().items():
        np.testing.assert_array_equal(value, state[key])
    assert float(model.optimizer.dynamic_scale) == 2.0**9
    model.train_on_batch(X, Y)
    assert np.isfinite(flat(model)).all()
    assert np.abs(flat(model) - np.concatenate(
        [w.ravel() for w in before]
    )).max() > 0  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_products_are_averaged_in_float32(dtype):
    """They differ from float32 products by rounding alone."""
    states = []
    for factor_dtype in ("float32", dtype):
        model, kfac = make(
            None, EAGER, factor_dtype=factor_dtype, fisher="empirical"
        )
        model.train_on_batch(X, Y)
        states.append(kfac.curvature.state())
    epsilon = {"float16": 2**-10, "bfloat16": 2**-7}[dtype]
    for key, value in states[0].items():
        if key.endswith("/moment"):
            error = np.abs(states[1][key] - value).max() / np.abs(value).max()
            assert error < 4 * epsilon, key
    moment = states[1]["conv/input_factor/moment"]
    assert np.abs(moment - states[0]["conv/input_factor/moment"]).max() > 0


@pytest.mark.parametrize("size", [1e4, 1e-6])
def test_half_precision_products_do_not_overflow_or_vanish(size):
    """Of values whose squares float16 cannot hold."""
    states = []
    for factor_dtype in ("float32", "float16"):
        model, kfac = make(None, EAGER, factor_dtype=factor_dtype)
        model.train_on_batch(X * size, Y)
        states.append(kfac.curvature.state())
    kernel = states[0]["conv/input_factor/moment"][0, :-1, :-1]
    found = states[1]["conv/input_factor/moment"][0, :-1, :-1]
    assert np.abs(found - kernel).max() < 4 * 2**-10 * np.abs(kernel).max()
    assert kernel.max() > 0.1 * size**2


def test_float64_state(float64):
    model, kfac = make()
    model.train_on_batch(X, Y)
    for key, value in kfac.curvature.state().items():
        assert value.dtype in (np.float64, np.int64, bool), key
    assert tf.as_dtype(kfac.momenta[0].dtype) == tf.float64


def test_the_loss_scale_survives_bad_batches(policy):
    """Without a floor it would be halved until all gradients vanish."""
    policy("mixed_float16")
    model, _ = make(4.0)
    bad = np.full_like(X, np.nan)
    for _ in range(5):
        model.train_on_batch(bad, Y)
    assert float(model.optimizer.dynamic_scale) == 1.0
