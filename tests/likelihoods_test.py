"""Sampled targets: their distribution, and the same ones in every mode."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import integrate, stats

import tfkfac
from tfkfac.capture import likelihoods

COUNT = 20_000
# In the middle of intervals of equal probability.
GRID = ((np.arange(2**14) + 0.5) / 2**14).astype("float32")


def numbers(count=COUNT, draws=1, update=0, **key):
    return likelihoods.uniforms(
        count,
        draws,
        **{"seed": 0, "stream": 0, **key},
        update=tf.convert_to_tensor(update),
    )


@pytest.mark.parametrize("update", [0, 7])
@pytest.mark.parametrize("stream", [0, 2])
def test_the_same_in_graph_eager_and_xla(update, stream):
    def draw(update):
        return numbers(50, 3, update, stream=stream)

    t = tf.constant(update)
    eager = draw(t)
    np.testing.assert_array_equal(eager, tf.function(draw)(t))
    np.testing.assert_array_equal(eager, tf.function(draw, jit_compile=True)(t))


def test_uniform_and_a_function_of_key_and_position():
    u = numbers().numpy().ravel()
    assert stats.kstest(u, "uniform").pvalue > 0.01
    assert u.min() > 0 and u.max() < 1
    np.testing.assert_array_equal(u[:100], numbers(100).numpy().ravel())
    for other in ({"update": 1}, {"seed": 1}, {"stream": 1}):
        v = numbers(**other).numpy().ravel()
        assert abs(np.corrcoef(u, v)[0, 1]) < 0.03


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


def test_a_divergence_is_a_cross_entropy():
    """KL differs from the NLL of a class by the entropy of the targets: 0."""
    p = tf.constant([[0.1, 0.6, 0.3]] * 3)
    likelihood = likelihoods.from_loss(keras.losses.KLDivergence())
    nll = likelihood.negative_log_likelihood(p, tf.range(3))
    loss = keras.losses.kl_divergence(tf.eye(3), p)
    np.testing.assert_allclose(nll, loss, atol=1e-5)


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


# What a model is compiled with, and the Fisher of one of its outputs.
COMPILED = {
    "mae": ("mae", 1.0),
    "mean_absolute_error": (keras.losses.mean_absolute_error, 1.0),
    "MeanAbsoluteError": (keras.losses.MeanAbsoluteError(), 1.0),
    "huber": ("huber", tfkfac.Huber()._information),
    "huber, function": (keras.losses.huber, tfkfac.Huber()._information),
    "Huber(0.5)": (keras.losses.Huber(0.5), tfkfac.Huber(0.5)._information),
    "log_cosh": ("log_cosh", 0.5),
}


@pytest.mark.parametrize("loss, fisher", COMPILED.values(), ids=COMPILED)
def test_statistics_of_a_compiled_loss(loss, fisher):
    """They are sampled by default: G = c F over the outputs."""
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, name="out")]
    )
    optimizer = tfkfac.KFAC(0.0, factor_decay=0.0, model=model)
    model.compile(optimizer, loss, run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(4096, 4))
    model.train_on_batch(x, np.zeros([4096, 3]))
    G = optimizer.moments()["out/output_factor"][0]
    np.testing.assert_allclose(G, fisher / 3 * np.eye(3), atol=0.015)


@pytest.mark.parametrize(
    "loss, kind",
    [
        (keras.losses.CategoricalCrossentropy(), tfkfac.Categorical),
        (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            tfkfac.Categorical,
        ),
        (keras.losses.BinaryCrossentropy(from_logits=True), tfkfac.Bernoulli),
        (keras.losses.MeanSquaredError(), tfkfac.Gaussian),
        (keras.losses.MeanSquaredLogarithmicError(), tfkfac.LogGaussian),
        (keras.losses.MeanAbsoluteError(), tfkfac.Laplace),
        (keras.losses.Huber(2.5), tfkfac.Huber),
        (keras.losses.LogCosh(), tfkfac.HyperbolicSecant),
        (keras.losses.KLDivergence(), tfkfac.Categorical),
    ],
)
def test_likelihood_of_a_loss(loss, kind):
    found = likelihoods.from_loss(loss)
    assert type(found) is kind
    options = found.get_config()
    for name, value in loss._fn_kwargs.items():
        assert options.get(name, value) == value
    if isinstance(loss, keras.losses.KLDivergence):
        assert not found.from_logits


def test_losses_without_a_likelihood():
    assert likelihoods.from_loss(keras.losses.Hinge()) is None
    assert likelihoods.from_loss(keras.losses.Poisson()) is None
    assert likelihoods.from_loss(
        keras.losses.CategoricalCrossentropy(axis=1)
    ) is (None)

    class Own(keras.losses.MeanSquaredError):
        def call(self, y_true, y_pred):
            return 2 * super().call(y_true, y_pred)

    assert likelihoods.from_loss(Own()) is None
