"""The step as a graph, beside that of eager mode."""

import classifier
import keras
import pytest
import tensorflow as tf

import tfkfac

pytestmark = pytest.mark.usefixtures("seeded_kernels")


class Doubling(keras.layers.Layer):
    """It does something else where it is traced."""

    def call(self, x):
        return x if tf.executing_eagerly() else 2 * x


class Noise(keras.layers.Layer):
    """Its numbers cannot be drawn again."""

    def call(self, x):
        return x + tf.random.normal(tf.shape(x))


def verify(layer):
    model = keras.Sequential(
        [keras.Input((4,)), layer, keras.layers.Dense(3, name="logits")]
    )
    model, _ = classifier.compiled(model)
    return tfkfac.verify(model, classifier.X, classifier.Y)


def test_graph_that_does_something_else():
    report = verify(Doubling())
    found = {f.where: f.sentence for f in report.failed}
    assert set(found) == {"logits", "weights"}
    assert {f.check for f in report.failed} == {"graph"}
    assert "Python state" in found["logits"]


def test_noise_is_not_compared():
    report = verify(Noise())
    (found,) = [f for f in report.findings if f.check == "graph"]
    assert found.result == "note" and "random numbers" in found.sentence
    assert report.ok
