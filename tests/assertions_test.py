"""A requirement that fails is a sentence, in eager mode and in a graph."""

import pytest
import tensorflow as tf

from tfkfac import assertions

SENTENCE = "A (wrong) value, 3: make it 2."


def test_eager():
    assertions.require(tf.constant(True), SENTENCE)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        assertions.require(tf.constant(False), SENTENCE)
    assert str(caught.value) == SENTENCE


def test_graph():
    @tf.function
    def step(x):
        assertions.require(x < 3, SENTENCE)
        return x

    assert step(tf.constant(2)) == 2
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        step(tf.constant(3))
    assert str(caught.value) != SENTENCE  # A trace stands before it.
    assert assertions.sentence(caught.value) == SENTENCE


def test_errors_of_others():
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        tf.debugging.assert_equal(1, 2, "[Another]")
    assert assertions.sentence(caught.value) is None
