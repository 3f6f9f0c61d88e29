"""Sampled targets: their distribution, and the same ones in every mode."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import tfkfac
from tfkfac.capture import likelihoods

COUNT = 20_000


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
    ],
)
def test_likelihood_of_a_loss(loss, kind):
    found = likelihoods.from_loss(loss)
    assert type(found) is kind
    if kind is not tfkfac.Gaussian:
        assert found.from_logits == loss._fn_kwargs["from_logits"]


def test_losses_without_a_likelihood():
    assert likelihoods.from_loss(keras.losses.Huber()) is None
    assert likelihoods.from_loss(
        keras.losses.CategoricalCrossentropy(axis=1)
    ) is (None)

    class Own(keras.losses.MeanSquaredError):
        def call(self, y_true, y_pred):
            return 2 * super().call(y_true, y_pred)

    assert likelihoods.from_loss(Own()) is None
