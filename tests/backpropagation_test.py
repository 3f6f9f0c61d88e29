"""Backward passes of the statistics, with moments that are the gradients."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkfac
from tfkfac.blocks import LayerCall, Moment
from tfkfac.capture import backpropagation, marker
from tfkfac.capture.fisher import Fisher
from tfkfac.capture.loss_terms import OutputTerms
from tfkfac.capture.losses import LossCall
from tfkfac.capture.records import Recorded

modes = pytest.mark.parametrize("eager", [True, False])
X = np.array([1.0, -2.0, 0.5], "float32")


def gradients_as_moments(computed):
    """Returns what stands for a block's moments, and notes each block."""

    def compute(block, calls):
        computed.append(block)
        return [Moment(c.gradient, tf.constant(len(calls))) for c in calls]

    return compute


def call(s, **options):
    return LayerCall(layers.Dense(1), s, None, s, **options)


def marked(s, tape):
    recorded = Recorded(call(s), {}, s, [])
    tape.watch(s)
    return recorded, marker.mark(s, [], recorded)


@modes
def test_gradients_come_to_all_calls(eager):
    """y = (3 (2 x + 1)^2)^2: "a" is called twice, "b" never reached."""
    computed = []

    def step(x):
        own = marker.OwnTape()
        tape = own.tape
        first, s = marked(2 * x, tape)
        second, r = marked(s + 1, tape)
        last, z = marked(3 * tf.square(r), tape)
        apart, _ = marked(4 * x, tape)
        y = tf.square(z)
        calls = {
            "a": [(first, None), (second, None)],
            "b": [(apart, None)],
            "c": [(last, None)],
        }
        own.pause()
        found = backpropagation.from_outputs(
            [y], [tf.ones_like(y)], calls, own, gradients_as_moments(computed)
        )
        assert all(r.observe is None for r in (first, second, last, apart))
        assert list(found) == ["a", "c"]
        return {b: [m.total for m in ms] for b, ms in found.items()}

    step = step if eager else tf.function(step, autograph=False)
    found = step(tf.constant(X))
    r = 2 * X + 1
    np.testing.assert_allclose(found["c"], [6 * r**2])
    np.testing.assert_allclose(found["a"], [36 * r**3] * 2)
    assert computed == ["c", "a"]  # Each once, the last layer first.


def test_gradients_of_the_training_step_are_without_the_loss_scale():
    """In the type of the statistics; `scale` is left to the moments."""
    scale, half = tf.constant(3.0), tf.constant([1024.0, -512.0], tf.float16)
    recorded = Recorded(call(half), {}, half, [])
    for loss_scale, expected in ((None, half), (512.0, [2.0, -1.0])):
        seen = []

        def compute(block, calls, seen=seen):
            seen.extend(calls)
            return []

        calls = {"a": [(recorded, half)]}
        backpropagation.of_training_step(calls, scale, loss_scale, compute)
        np.testing.assert_array_equal(seen[0].gradient, expected)
        assert seen[0].scale is scale and recorded.call.gradient is None
    assert seen[0].gradient.dtype == tf.float32


OUTPUTS = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


def sampled(outputs, before=0, update=0, **changes):
    outputs = tf.constant(outputs)
    term = OutputTerms(
        outputs, tfkfac.Categorical(), None, "mean", tf.shape(outputs)[0]
    )
    term = dataclasses.replace(term, **changes)
    fisher = Fisher([[term]], True, False)
    (y,), (g,), N = backpropagation.sampled_gradients(
        fisher, tf.float32, seed=1, update=tf.constant(update),
        examples_before=tf.constant(before),
    )  # fmt: skip
    assert y is term.output
    return g.numpy(), float(N)


def test_targets_of_a_part_are_those_of_the_joint_batch():
    whole, N = sampled(OUTPUTS)
    assert N == 6
    p = np.array(tf.nn.softmax(OUTPUTS))
    targets = p - whole  # A row is p - target.
    np.testing.assert_allclose(np.sort(targets)[:, :-1], 0, atol=1e-6)
    np.testing.assert_allclose(targets.max(axis=1), 1, atol=1e-6)
    for cut in (1, 4):
        parts = [sampled(OUTPUTS[:cut])[0], sampled(OUTPUTS[cut:], cut)[0]]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)
    assert np.abs(sampled(OUTPUTS, update=1)[0] - whole).max() > 0.1
    steps = OUTPUTS.reshape(3, 2, 4)  # Two terms in an example.
    joint, N = sampled(steps, unit="positions")
    assert N == 6
    np.testing.assert_allclose(joint.reshape(6, 4), whole, atol=1e-6)
    rest, _ = sampled(steps[1:], 1, unit="positions")
    np.testing.assert_allclose(rest, joint[1:], atol=1e-6)


def test_gradients_of_the_compiled_loss():
    """With the weights of the examples and of the loss; a mean over N = 6."""
    y, w = np.arange(6) % 4, np.array([1, 2, 0, 1, 0.5, 3], "float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    outputs = tf.constant(OUTPUTS)
    of_loss = LossCall(
        loss=loss, y_true=tf.constant(y), y_pred=outputs,
        sample_weight=tf.constant(w), loss_weight=0.5, name=None,
    )  # fmt: skip
    term = OutputTerms(outputs, None, of_loss, loss.reduction, tf.constant(6))
    fisher = Fisher([[term]], False, True)
    (_,), (g,), N = backpropagation.empirical_gradients(fisher, tf.float32)
    expected = np.array(tf.nn.softmax(OUTPUTS)) - np.eye(4)[y]
    expected *= 0.5 * w[:, np.newaxis]
    assert float(N) == 6
    np.testing.assert_allclose(g, expected, rtol=1e-5, atol=1e-6)
