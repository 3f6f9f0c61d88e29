"""Weights that are read outside the calls of their layers are told."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from oracle import cross_entropy
from own_models import Function, eagerly

import tfkfac

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 7, (4, 3))
X, Y = RNG.normal(size=(4, 4)).astype("float32"), np.arange(4) % 3


class TiedByHand(keras.Model):
    def __init__(self):
        super().__init__(name="tied")
        self.embedding = layers.Embedding(7, 4, name="embedding")
        self.dense = layers.Dense(4, "tanh", name="dense")

    def call(self, x):
        h = self.dense(self.embedding(x))
        return ops.matmul(h, ops.transpose(self.embedding.embeddings))


class Reader(layers.Layer):
    """A projection by the kernel of another layer."""

    def __init__(self, other, **options):
        super().__init__(**options)
        self.other = other

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.other.kernel))


def with_a_reader():
    dense = layers.Dense(3, "tanh", name="dense")
    return keras.Sequential(
        [keras.Input((4,)), dense, Reader(dense, name="reader")]
    )


def with_wrappers():
    """Keras' own layers read the weights of what they hold."""
    inputs = keras.Input((4,))
    x = layers.SpectralNormalization(layers.Dense(6))(inputs)
    x = layers.Reshape((2, 3))(x)
    x = layers.RNN([layers.GRUCell(2), layers.LSTMCell(2)])(x)
    x = Function({"w": (2, 3)}, lambda layer, x: x @ layer.w)(x)
    return keras.Model(inputs, layers.Dense(3)(x))


def said(model, x, y, eager, caplog):
    """Returns what is said of reads in three steps."""
    model(x)
    optimizer = tfkfac.KFAC(model=model)
    model.compile(optimizer, cross_entropy(), run_eagerly=eager)
    for _ in range(3):
        model.train_on_batch(x, y)
    texts = [record.getMessage() for record in caplog.records]
    return [text for text in texts if "a weight of another layer" in text]


@eagerly
def test_embeddings_that_the_call_of_the_model_reads(eager, caplog):
    (text,) = said(TiedByHand(), TOKENS, TOKENS, eager, caplog)
    assert "the call of 'tied' reads tied/embedding/embeddings" in text
    assert "ReversibleEmbedding" in text and "skip=" in text


@eagerly
def test_kernels_that_another_layer_reads(eager, caplog):
    (text,) = said(with_a_reader(), X, Y, eager, caplog)
    assert "the call of 'reader' reads" in text and "dense/kernel" in text


@eagerly
def test_layers_that_read_their_own_weights_are_not_named(eager, caplog):
    assert not said(with_wrappers(), X, Y, eager, caplog)


@pytest.mark.parametrize("skip", [["dense"], []])
def test_weights_without_a_block_are_not_named(skip, caplog):
    model = with_a_reader()
    optimizer = tfkfac.KFAC(model=model, skip=skip)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(X, training=True))
    variables = model.trainable_variables
    optimizer.apply(tape.gradient(loss, variables), variables)
    assert ("a weight of another layer" in caplog.text) == (not skip)
