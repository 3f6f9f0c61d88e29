"""Sampled targets: their distribution, their loss, its curvature."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from draws import COUNT, numbers
from scipy import integrate, stats

import tfkfac
from tfkfac.capture import likelihoods

# In the middle of intervals of equal probability.
GRID = ((np.arange(2**14) + 0.5) / 2**14).astype("float32")


@pytest.mark.parametrize("from_logits", [True, False])
def test_categorical_targets(from_logits):
    p = np.array([0.1, 0.0, 0.6, 0.3], "float32")
    outputs = np.tile(np.log(p + 1e-12) if from_logits else p, (COUNT, 1))
    likelihood = tfkfac.Categorical(from_logits)
    targets = likelihood.sample(tf.constant(outputs), numbers()).numpy()
    counts = np.bincount(targets, minlength=4)
    assert counts[1] == 0
    kept = [0, 2, 3]
    assert stats.chisquare(counts[kept], p[kept] * COUNT).pvalue > 0.01
    nll = likelihood.negative_log_likelihood(outputs[:100], targets[:100])
    np.testing.assert_allclose(nll, -np.log(p[targets[:100]]), rtol=1e-4)


@pytest.mark.parametrize("from_logits", [True, False])
def test_bernoulli_targets(from_logits):
    p = np.array([0.2, 0.9], "float32")
    outputs = np.log(p / (1 - p)) if from_logits else p
    outputs = tf.constant(np.tile(outputs, (COUNT, 1)))
    likelihood = tfkfac.Bernoulli(from_logits)
    targets = likelihood.sample(outputs, numbers(draws=2)).numpy()
    np.testing.assert_allclose(targets.mean(0), p, atol=0.015)
    loss = keras.losses.BinaryCrossentropy(from_logits, reduction="none")
    c = likelihood.loss_scale(outputs)
    nll = likelihood.negative_log_likelihood(outputs, targets)
    np.testing.assert_allclose(c * nll, loss(targets, outputs), rtol=1e-5)


def test_gaussian_targets():
    outputs = tf.constant(np.tile([1.0, -2.0], (COUNT, 1)).astype("float32"))
    likelihood = tfkfac.Gaussian()
    targets = likelihood.sample(outputs, numbers(draws=2))
    noise = (targets - outputs).numpy()
    assert stats.kstest(noise.ravel(), "norm").pvalue > 0.01
    loss = keras.losses.MeanSquaredError(reduction="none")
    c = likelihood.loss_scale(outputs)
    nll = likelihood.negative_log_likelihood(outputs, targets)
    np.testing.assert_allclose(c * nll, loss(targets, outputs), rtol=1e-5)


def huber_rho(delta):
    def rho(r):
        size = np.abs(r)
        return np.where(size <= delta, r**2 / 2, delta * (size - delta / 2))

    return rho


# Likelihood, minus the logarithm of the density of its residuals, Keras' loss.
RESIDUALS = {
    "Gaussian": (
        tfkfac.Gaussian(),
        lambda r: r**2 / 2,
        keras.losses.mean_squared_error,
    ),
    "LogGaussian": (
        tfkfac.LogGaussian(),
        lambda r: r**2 / 2,
        keras.losses.mean_squared_logarithmic_error,
    ),
    "Laplace": (tfkfac.Laplace(), np.abs, keras.losses.mean_absolute_error),
    "HyperbolicSecant": (
        tfkfac.HyperbolicSecant(),
        lambda r: np.log(np.cosh(r)),
        keras.losses.log_cosh,
    ),
    **{
        f"Huber, {delta}": (
            tfkfac.Huber(delta),
            huber_rho(delta),
            functools.partial(keras.losses.huber, delta=delta),
        )
        for delta in (0.3, 1.0, 2.5, 8.0, 100.0)
    },
}


each_residual = pytest.mark.parametrize(
    "likelihood, rho, loss", RESIDUALS.values(), ids=RESIDUALS
)


@each_residual
def test_the_distribution_of_targets(likelihood, rho, loss):
    """The distribution function at the targets is the uniform numbers."""
    outputs = np.tile(np.array([1.0, 0.5], "float32"), (len(GRID), 1))
    uniforms = np.stack([GRID, GRID[::-1]], axis=1)
    y = likelihood.sample(tf.constant(outputs), uniforms).numpy()
    r = y - outputs
    if isinstance(likelihood, tfkfac.LogGaussian):
        r = np.log1p(y) - np.log1p(outputs)
    points = np.linspace(-60, 60, 240_001)
    below = integrate.cumulative_trapezoid(
        np.exp(-rho(points)), points, initial=0
    )
    found = np.interp(r, points, below / below[-1])
    np.testing.assert_allclose(found, uniforms, atol=3e-6)


@each_residual
def test_the_extreme_targets_are_finite(likelihood, rho, loss):
    extremes = np.array([[2.0**-24, 0.5 - 2.0**-24, 1 - 2.0**-24]], "float32")
    y = likelihood.sample(tf.zeros([1, 3]), extremes).numpy()
    assert np.isfinite(y).all() and y[0, 0] < y[0, 1] <= 0 < y[0, 2]
    assert np.isfinite(likelihood.negative_log_likelihood(tf.zeros([1, 3]), y))


@each_residual
def test_a_loss_term_is_c_nll(likelihood, rho, loss):
    outputs = np.random.default_rng(0).uniform(4, 6, (100, 3)).astype("float32")
    uniforms = np.random.default_rng(1).uniform(0.1, 0.9, (100, 3))
    y = likelihood.sample(tf.constant(outputs), uniforms.astype("float32"))
    nll = likelihood.negative_log_likelihood(tf.constant(outputs), y)
    c = likelihood.loss_scale(tf.constant(outputs))
    np.testing.assert_allclose(c * nll, loss(y, outputs), rtol=1e-4, atol=1e-6)


def derivatives(likelihood, outputs, targets):
    """Returns dNLL/ds and d^2 NLL/ds^2 for the first of the K outputs."""
    outputs = tf.constant(outputs)
    with tf.GradientTape() as outer:
        outer.watch(outputs)
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            nll = likelihood.negative_log_likelihood(outputs, targets)
        first = tape.gradient(nll, outputs)[:, 0]
    second = outer.gradient(
        first, outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return first.numpy().astype("float64"), second.numpy()[:, 0]


OTHERS = {
    "Categorical": tfkfac.Categorical(),
    "Categorical, probabilities": tfkfac.Categorical(from_logits=False),
    "Bernoulli": tfkfac.Bernoulli(),
    "Bernoulli, probabilities": tfkfac.Bernoulli(from_logits=False),
}


LIKELIHOODS = {name: x for name, (x, _, _) in RESIDUALS.items()} | OTHERS


each_likelihood = pytest.mark.parametrize(
    "likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS
)


@each_likelihood
def test_curvature_is_the_fisher(likelihood):
    """E[(dNLL/ds)^2] = u^T F u; that of the second derivative is the same."""
    outputs = np.tile(np.array([0.3, 0.7], "float32"), (len(GRID), 1))
    draws = likelihood.draws(outputs)
    y = likelihood.sample(
        tf.constant(outputs), np.tile(GRID[:, np.newaxis], (1, draws))
    )
    first, second = derivatives(likelihood, outputs, y)
    fisher = likelihood.curvature_along(
        tf.constant(outputs[:1]), tf.constant([[1.0, 0.0]])
    )
    np.testing.assert_allclose(np.mean(first**2), fisher[0], rtol=1e-3)
    if isinstance(likelihood, tfkfac.Laplace):
        assert not second.any()
    else:
        np.testing.assert_allclose(np.mean(second), fisher[0], rtol=1e-3)


@each_likelihood
def test_targets_in_graph_eager_and_xla(likelihood):
    outputs = tf.constant(np.tile(np.float32([0.3, 0.7]), (500, 1)))

    def draw(update):
        uniforms = numbers(500, likelihood.draws(outputs), update)
        y = likelihood.sample(outputs, uniforms)
        return y, likelihood.negative_log_likelihood(outputs, y)

    t = tf.constant(3)
    for options in ({}, {"jit_compile": True}):
        for x, expected in zip(tf.function(draw, **options)(t), draw(t)):
            np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-5)


@each_likelihood
def test_serialization(likelihood):
    saved = keras.saving.serialize_keras_object(likelihood)
    restored = keras.saving.deserialize_keras_object(saved)
    assert type(restored) is type(likelihood)
    assert restored.get_config() == likelihood.get_config()


@pytest.mark.parametrize("delta", [0, -1.0, float("inf"), float("nan")])
def test_what_is_no_delta(delta):
    with pytest.raises(ValueError, match="Huber.delta=.*positive"):
        tfkfac.Huber(delta)
    assert likelihoods.from_loss(keras.losses.Huber(delta)) is None
