"""Marks, where backward passes show their gradients, and own tapes."""

import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf

from tfkfac.capture import marker

modes = pytest.mark.parametrize("eager", [True, False])
X = np.array([1.0, 2.0, -3.0], "float32")


class Shown:
    """Notes the gradient that comes, and sends back twice of it."""

    def __init__(self, *more):
        self.seen, self._more = [], more

    def backward(self, gradient):
        self.seen.append(gradient)
        return [2 * gradient, *(m * gradient for m in self._more)]


def differentiated(eager, of, more=False):
    """Returns (x^2 of the mark, its gradient by x)."""

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            s = 3 * x
            y = tf.square(marker.mark(s, [x] if more else [], of))
        return y, tape.gradient(y, x)

    step = step if eager else tf.function(step, autograph=False)
    return step(tf.constant(X))


@modes
def test_a_mark_shows_the_gradient_and_takes_what_comes_back(eager):
    of = Shown()
    y, gradient = differentiated(eager, of)
    np.testing.assert_array_equal(y, 9 * X**2)
    assert len(of.seen) == 1
    np.testing.assert_array_equal(gradient, 2 * (2 * 3 * X) * 3)
    if eager:
        np.testing.assert_array_equal(of.seen[0], 2 * 3 * X)


@modes
def test_more_inputs_have_gradients_of_their_own(eager):
    _, gradient = differentiated(eager, Shown(5.0), more=True)
    np.testing.assert_array_equal(gradient, (2 * 3 + 5) * (2 * 3 * X))


@modes
def test_a_mark_of_what_is_gone_does_nothing(eager):
    """Neither tapes nor graphs keep it."""
    x = tf.constant(X)

    def step():
        of = Shown()
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.square(marker.mark(x, [], of))
        reference = weakref.ref(of)
        del of
        gc.collect()
        assert reference() is None
        return tape.gradient(y, x)

    found = step() if eager else tf.function(step, autograph=False)()
    np.testing.assert_array_equal(found, 2 * X)


def test_the_frame_of_a_backward_pass():
    frames = []

    class Noting(Shown):
        def backward(self, gradient):
            frames.append(marker.gradient_frame())
            return [gradient]

    assert marker.gradient_frame() is None
    of = Noting()
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = marker.mark(x, [], of)
    tape.gradient(y, x)
    assert frames[0].f_locals["self"] is tape


def test_own_tapes_are_no_training_step():
    assert not marker.is_recording()
    own = marker.OwnTape()
    assert not marker.is_recording()
    with tf.GradientTape():
        assert marker.is_recording()
    own.pause()
    own.pause()  # Twice does no harm.


def test_an_own_tape_records_until_it_is_paused():
    x = tf.constant(X)
    own = marker.OwnTape()
    own.watch(x)
    y = 3 * x
    own.pause()
    lost = tf.square(y)
    own.resume()
    z = tf.square(y)
    own.pause()
    np.testing.assert_array_equal(own.tape.gradient(z, x), 2 * 9 * X)
    assert own.tape.gradient(lost, x) is None
