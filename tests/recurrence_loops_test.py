"""The way back through time, against a tape over unrolled steps."""

import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfkfac.recurrence.cells import SimpleCell, Weights
from tfkfac.recurrence.loops import Recurrence, Trace

T, D, U, B = 4, 3, 2, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(T, B, D))
KEEP = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 0, 1]], bool)
pytestmark = pytest.mark.usefixtures("float64")


def simple_cell(inputs):
    def normal(*shape):
        return tf.constant(RNG.normal(size=shape))

    weights = Weights(normal(inputs, U), normal(U, U), normal(U))
    return SimpleCell(layers.SimpleRNNCell(U), weights)


@pytest.mark.parametrize("masked", ["no", "kept", "zeroes"])
@pytest.mark.parametrize("graph", [False, True])
def test_gradients_at_the_pre_activations(masked, graph):
    """Of two cells on each other, h_t = tanh(s_t + R^T h)."""
    stack = [simple_cell(D), simple_cell(U)]
    start = [tf.constant(RNG.normal(size=(B, U))) for _ in stack]
    at_outputs = tf.constant(RNG.normal(size=(T, B, U)))
    at_states = [tf.constant(RNG.normal(size=(B, U))) for _ in stack]
    mask = None if masked == "no" else tf.constant(KEEP[..., np.newaxis])
    recurrence = Recurrence(stack, mask, masked == "zeroes")

    def step(x):
        traces = recurrence.backpropagate(x, start, at_outputs, at_states)
        return [(t.x, t.h, t.s, t.g) for t in traces]

    step = tf.function(step, autograph=False) if graph else step
    traces = [Trace(*of_cell) for of_cell in step(tf.constant(X))]

    seen = [{"x": [], "h": [], "s": []} for _ in stack]
    states, output = start, tf.zeros([B, U], tf.float64)
    loss = tf.zeros([], tf.float64)
    with tf.GradientTape() as tape:
        for t in range(T):
            x, new = tf.constant(X[t]), []
            for cell, h, of_cell in zip(stack, states, seen):
                w = cell.weights
                s = tf.identity(x @ w.kernel + w.bias)
                tape.watch(s)
                for key, value in (("x", x), ("h", h), ("s", s)):
                    of_cell[key].append(value)
                x = tf.tanh(s + h @ w.recurrent_kernel)
                new.append(x)
            if mask is not None:
                before = 0 * output if masked == "zeroes" else output
                x = tf.where(mask[t], x, before)
                new = [tf.where(mask[t], n, o) for n, o in zip(new, states)]
            states, output = new, x
            loss += tf.reduce_sum(output * at_outputs[t])
        for state, g in zip(states, at_states):
            loss += tf.reduce_sum(state * g)
    gradients = tape.gradient(loss, [of_cell["s"] for of_cell in seen])
    for trace, of_cell, g in zip(traces, seen, gradients):
        np.testing.assert_allclose(trace.g, tf.stack(g), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(trace.h, tf.stack(of_cell["h"]), rtol=1e-10)
        if trace is traces[0]:
            np.testing.assert_array_equal(trace.x, X)
            np.testing.assert_allclose(trace.s, tf.stack(of_cell["s"]))
