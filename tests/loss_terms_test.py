"""The terms of a loss: their number, weights and masks."""

import keras
import numpy as np
import pytest
import steps
import tensorflow as tf
from keras import layers, ops
from steps import X, Y, factors, kfac, modes, net

import tfkfac

ONE_HOT = np.eye(3, dtype="float32")[np.arange(32) % 3]


NUMBERS = {
    "by name": "mse",
    "of one number": lambda t, p: ops.mean(ops.square(t - p)),
    "of a matrix": lambda t, p: ops.square(t - p),
}


@modes
@pytest.mark.parametrize("loss", NUMBERS.values(), ids=NUMBERS)
def test_terms_of_a_mean_do_not_depend_on_its_shape(loss, eager):
    model = net()
    optimizer = kfac(model, fisher="empirical")
    model.compile(optimizer, loss, run_eagerly=eager)
    model.train_on_batch(X, Y)
    steps.assert_equal(factors(optimizer), steps.of_mean_square(model))


CROSS_ENTROPIES = {
    "by Keras": keras.losses.CategoricalCrossentropy(from_logits=True),
    "of a matrix": lambda t, p: -3 * t * tf.nn.log_softmax(p),
    "of one number": lambda t, p: ops.mean(
        keras.losses.categorical_crossentropy(t, p, from_logits=True)
    ),
}


@modes
@pytest.mark.parametrize("loss", CROSS_ENTROPIES.values(), ids=CROSS_ENTROPIES)
def test_sampled_terms_of_a_loss_of_any_shape(loss, eager):
    """At equal probabilities |p - target|^2 is 2/3 for any target."""
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, "linear", True, "zeros", name="o")]
    )
    optimizer = kfac(model, likelihood=tfkfac.Categorical())
    model.compile(optimizer, loss, run_eagerly=eager)
    model.train_on_batch(X, ONE_HOT)
    found = factors(optimizer)
    np.testing.assert_allclose(np.trace(found["o/output_factor"]), 2 / 3, 1e-5)
    ones = np.c_[X, np.ones(32)]
    np.testing.assert_allclose(
        found["o/input_factor"], ones.T @ ones / 32, rtol=1e-4, atol=1e-5
    )
