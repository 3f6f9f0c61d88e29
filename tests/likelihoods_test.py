"""Which distribution is behind a loss, and the numbers that draw from it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from draws import numbers
from scipy import stats

import tfkfac
from tfkfac.capture import likelihoods


@pytest.mark.parametrize("update", [0, 7])
@pytest.mark.parametrize("stream", [0, 2])
def test_the_same_in_graph_eager_and_xla(update, stream):
    def draw(update):
        return numbers(50, 3, update, stream=stream)

    t = tf.constant(update)
    eager = draw(t)
    np.testing.assert_array_equal(eager, tf.function(draw)(t))
    np.testing.assert_array_equal(eager, tf.function(draw, jit_compile=True)(t))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_rows_from_a_place_that_is_not_known_when_it_compiles(jit_compile):
    """As on ranks, and in micro-steps."""
    draw = tf.function(
        lambda begin: numbers(9, 3, begin=begin), jit_compile=jit_compile
    )
    whole = numbers(50, 3).numpy()
    for begin in (0, 1, 2, 3, 41):
        found = draw(tf.constant(begin, tf.int64))
        np.testing.assert_array_equal(found, whole[begin : begin + 9])


def test_uniform_and_a_function_of_key_and_position():
    u = numbers().numpy().ravel()
    assert stats.kstest(u, "uniform").pvalue > 0.01
    assert u.min() > 0 and u.max() < 1
    np.testing.assert_array_equal(u[:100], numbers(100).numpy().ravel())
    for other in ({"update": 1}, {"seed": 1}, {"stream": 1}):
        v = numbers(**other).numpy().ravel()
        assert abs(np.corrcoef(u, v)[0, 1]) < 0.03


def test_a_divergence_is_a_cross_entropy():
    """KL differs from the NLL of a class by the entropy of the targets: 0."""
    p = tf.constant([[0.1, 0.6, 0.3]] * 3)
    likelihood = likelihoods.from_loss(keras.losses.KLDivergence())
    nll = likelihood.negative_log_likelihood(p, tf.range(3))
    loss = keras.losses.kl_divergence(tf.eye(3), p)
    np.testing.assert_allclose(nll, loss, atol=1e-5)


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
