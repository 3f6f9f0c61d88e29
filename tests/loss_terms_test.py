"""The terms of a loss: their number, weights and masks."""

import keras
import numpy as np
import pytest
import steps
import tensorflow as tf
from keras import layers, ops
from steps import X, Y, factors, kfac, modes, net

import tfkfac
from tfkfac import keras_compat
from tfkfac.capture import loss_terms
from tfkfac.capture.loss_terms import OutputTerms
from tfkfac.capture.losses import LossCall

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


# One output by itself.


def terms(shape, weight=None, loss_weight=None, mask=None, **options):
    """The terms of squared errors over an output of a shape."""
    loss = keras.losses.MeanSquaredError(options.pop("reduction", "sum"))
    output = tf.zeros(shape)
    if mask is not None:
        keras_compat.set_mask(output, tf.constant(mask))
    w = None if weight is None else tf.constant(weight)
    call = LossCall(loss, loss_weight, None, tf.zeros(shape), output, w)
    return OutputTerms(
        output, None, call, loss.reduction, tf.constant(shape[0]), **options
    )


def weighed(term):
    w, count = term.weights(tf.float64)
    return w.numpy().tolist(), float(count)


def test_a_term_for_each_position():
    """Unless an example is asked for."""
    assert weighed(terms([2, 3, 4])) == ([1] * 6, 6)
    assert terms([2, 3, 4]).by_position
    assert weighed(terms([2, 3, 4], unit="examples"))[1] == 2
    assert weighed(terms([5, 4])) == ([1] * 5, 5)


def test_masks_and_weights_of_terms():
    """A mask is out of N; a weight of 0 is not."""
    mask = [[True, False, True], [True, False, False]]
    assert weighed(terms([2, 3, 4], mask=mask)) == ([1, 0, 1, 1, 0, 0], 3)
    found = weighed(
        terms([2, 3, 4], mask=mask, weight=[[2.0], [0.0]], loss_weight=0.5)
    )
    assert found == ([1, 0, 1, 0, 0, 0], 3)
    by_term = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert weighed(terms([2, 3, 4], weight=by_term)) == ([0, 1, 2, 3, 4, 5], 6)
    assert weighed(terms([2, 4], weight=[[3.0], [4.0]])) == ([3, 4], 2)


def test_what_a_gradient_is_divided_by():
    """D such that D L is the sum over the terms: 1 for a sum."""
    weight = [1.0, 3.0, 0.0]

    def divisor(**options):
        term = terms([3, 2], weight=weight, loss_weight=0.5, **options)
        return float(loss_terms.divisor([[term]], tf.float64))

    assert divisor(reduction="sum") == 1
    assert divisor(reduction="sum_over_batch_size") == 3
    # Keras divides by sum w = 4; the loss weight is no part of it.
    assert divisor(reduction="mean_with_sample_weight") == 4


def test_outputs_with_fewer_terms_are_weighted_up():
    """Within a call of the model; N is summed over the calls."""
    a, b = terms([2, 3, 4]), terms([2, 5])
    weights, count = loss_terms.weigh([[a, b], [b]], tf.float64)
    assert float(count) == 6 + 2
    found = [[w.numpy().tolist() for w in parts] for parts in weights]
    assert found == [[[1] * 6, [3] * 2], [[1] * 2]]


def test_an_output_that_is_not_known():
    term = OutputTerms(None, None, None, "mean", tf.constant(4))
    assert weighed(term) == ([1] * 4, 4)
    assert term.is_mean and not term.by_position


def test_loss_weight_of_zero():
    """Also where a term is no entry of the unreduced loss."""
    term = terms([4, 3], loss_weight=0.0, unit="examples")
    term.call.y_true += 1.0
    w, _ = term.weights(tf.float32)
    gradient = loss_terms.empirical_gradient(term, w, tf.float32)
    np.testing.assert_array_equal(gradient, np.zeros([4, 3]))
