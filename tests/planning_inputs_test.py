"""What a batch of a model looks like, where that can be known."""

import keras
import pytest
import tensorflow as tf
from keras import layers

from tfkfac.planning import inputs

Spec = tf.TensorSpec


def test_what_a_model_was_built_for():
    sequential = keras.Sequential([keras.Input((5, 2)), layers.Flatten()])
    assert inputs.specs(sequential, None, 7) == Spec([7, 5, 2])
    a = keras.Input((3,), dtype="int32", name="a")
    b = keras.Input((2,), name="b")
    functional = keras.Model({"a": a, "b": b}, b)
    found = inputs.specs(functional, None, 4)
    assert found == {"a": Spec([4, 3], tf.int32), "b": Spec([4, 2])}


class Unnamed(keras.Model):
    """It is built for a shape, and has no symbolic inputs."""

    def build(self, shape):
        self.built = True

    def call(self, x):
        return x


def test_what_a_subclass_was_built_for():
    model = Unnamed()
    model.build((None, 6))
    assert inputs.specs(model, None, 3) == Spec([3, 6])


def test_what_is_given_goes_first():
    """The batch is another; what is given may be a tensor."""
    model = keras.Sequential([keras.Input((None,)), layers.Embedding(5, 2)])
    tokens = tf.zeros([9, 4], tf.int32)
    assert inputs.specs(model, tokens, 2) == Spec([2, 4], tf.int32)
    with pytest.raises(ValueError, match=r"\(None, None\).*sides are open"):
        inputs.specs(model, None, 2)


def test_inputs_that_are_not_known():
    model = Unnamed(name="bare")
    model.built = True
    with pytest.raises(ValueError, match="'bare' takes are not known: give"):
        inputs.specs(model, None, 2)
