"""What is recorded of a step: graphs, gradients that come, first tensors."""

import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfkfac.blocks import LayerCall
from tfkfac.capture import marker, records
from tfkfac.capture.records import Arrival, Recorded


def test_graphs_and_their_branches():
    found = []

    @tf.function(autograph=False)
    def step(x):
        outer = records.current_graph()
        assert records.is_within(outer, outer)

        def branch():
            inner = records.current_graph()
            found.append(records.is_within(inner, outer))
            found.append(records.is_within(outer, inner))
            found.append(records.is_within(inner, None))
            return x

        return tf.cond(x > 0, branch, lambda: -x)

    step(tf.constant(1.0))
    assert found[:3] == [True, False, False]
    assert records.current_graph() is None and records.is_within(None, None)
    assert not records.is_within(None, tf.Graph())


def test_the_first_tensor_is_no_scalar():
    x = np.ones([2, 3])
    w = keras.Variable(np.zeros(4))
    assert records.first_tensor(((1.0, tf.constant(2.0)), {})) is None
    found = records.first_tensor((("a", tf.constant(2.0), [x]), {"y": w}))
    np.testing.assert_array_equal(found, x)
    assert records.first_tensor(((), {"y": w})).shape == [4]


def test_small_things():
    assert records.first_known(None, 0, 1) == 0
    assert records.first_known(None, None) is None
    v = keras.Variable(1.0)
    assert records.keys(v) == (id(v), id(v.value))
    assert records.keys(v.value)[0] == id(v.value)


class Listener:
    """Takes gradients of passes by `own` alone."""

    def __init__(self, own):
        self.own, self.calls = own, []

    def note_arrival(self, recorded, arrival):
        return any(s is self.own for s in records.sources(arrival.frame))


class Shortcut:
    def input_gradient(self, gradient):
        return 10 * gradient


def recorded_call(x, listener=None, shortcut=None):
    """Returns (a call of a layer s = 2 x, its marked s)."""
    s = 2 * x
    call = LayerCall(layers.Dense(1), x, None, s, shortcut=shortcut)
    heard = [] if listener is None else [weakref.ref(listener)]
    recorded = Recorded(call, {}, s, heard)
    through = [] if shortcut is None else [x]
    return recorded, marker.mark(s, through, recorded)


def test_gradients_that_are_not_of_the_own_variables_are_forgotten():
    x, other = tf.constant([1.0, -2.0]), tf.constant([3.0, 1.0])
    for source, expected in ((x, 1), (other, 0)):
        listener = Listener(x)
        with tf.GradientTape() as tape:
            tape.watch([x, other])
            recorded, s = recorded_call(x * other, listener)
            y = tf.square(s)
        tape.gradient(y, source)
        assert len(recorded.arrivals) == expected
        if expected:
            (arrival,) = recorded.arrivals
            np.testing.assert_array_equal(arrival.gradient, 4 * x * other)
            assert arrival.frame is not None and not arrival.inner
            recorded.forget_arrivals()
            assert arrival.frame is None and not recorded.arrivals


def test_a_pass_that_a_tape_records_is_an_inner_one():
    x = tf.constant([1.0, -2.0])
    listener = Listener(x)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            recorded, s = recorded_call(x, listener)
            y = tf.reduce_sum(s**3)
        penalty = tf.reduce_sum(tape.gradient(y, x))
    assert [a.inner for a in recorded.arrivals] == [True]
    inner = recorded.arrivals[0]
    np.testing.assert_allclose(outer.gradient(penalty, x), 48 * x)
    assert len(inner.differentiated_by) == 1
    assert [a.inner for a in recorded.arrivals] == [True, False]


@pytest.mark.parametrize("shortcut", [None, Shortcut()])
def test_the_statistics_go_around_the_layer(shortcut):
    """Training gradients go through it: s = 2 x, and 10 is the shortcut."""
    x, seen = tf.constant([1.0, -2.0]), []
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        recorded, s = recorded_call(x, shortcut=shortcut)
        y = tf.square(s)
    np.testing.assert_array_equal(tape.gradient(y, x), 2 * (4 * x))

    def observe(call, gradient):
        seen.append((call, gradient))
        return []

    recorded.observe = observe
    times = 2 if shortcut is None else 10
    np.testing.assert_array_equal(tape.gradient(y, x), times * (4 * x))
    ((call, gradient),) = seen
    assert call is recorded
    np.testing.assert_array_equal(gradient, 4 * x)


def test_what_is_forgotten_holds_no_frame():
    arrival = Arrival(tf.zeros([1]), False, None)
    assert arrival.backward(3.0) == [3.0] and not arrival.differentiated_by
