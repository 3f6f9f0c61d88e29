"""Layers that hold, wrap or change others: spectral norms, attention."""

import hand
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from oracle import element_error
from own_models import eagerly, summary
from wrapped import RNG, SETTINGS, kfac, randomized


def test_quantized_layers_are_named():
    dense = layers.Dense(4, name="quantized")
    model = keras.Sequential([keras.Input((4,)), dense, layers.Dense(3)])
    dense.quantize("int8")
    optimizer = kfac(model)
    model.train_on_batch(RNG.normal(size=(4, 4)), np.arange(4) % 3)
    text = summary(optimizer)
    assert "(the layer is quantized, and its kernel is no trainable" in text


@eagerly
def test_spectral_normalization(float64, eager):
    """The kernel is set to kernel / sigma before the call: V is of that."""
    dense, last = layers.Dense(5, "tanh", name="d"), layers.Dense(3)
    wrapped = layers.SpectralNormalization(dense)
    model = keras.Sequential([keras.Input((4,)), wrapped, last])
    randomized(dense.kernel)
    optimizer = kfac(model, eager)
    u = wrapped.vector_u.numpy()
    by_hand = hand.Hand(
        {
            "d": hand.stacked(dense.kernel, dense.bias),
            "last": hand.stacked(last.kernel, last.bias),
        },
        {"d", "last"},
        **SETTINGS,
    )
    for _ in range(3):
        x, y = RNG.normal(size=(6, 4)), RNG.integers(0, 3, size=6)
        W = by_hand.W["d"][:-1]
        v = u @ W.T / np.linalg.norm(u @ W.T)
        u = v @ W / np.linalg.norm(v @ W)
        by_hand.W["d"][:-1] = W / (v @ W @ u.T)

        def forward(h, x=x, y=y):
            s = h.product("d", tf.constant(x))
            return hand.cross_entropy(h.product("last", tf.tanh(s)), y)

        by_hand.update(forward, 6)
        model.train_on_batch(x, y)
    found = hand.stacked(dense.kernel, dense.bias)
    assert element_error(found, by_hand.W["d"]) < 1e-6
    assert "100.0 %" in summary(optimizer)


def test_grouped_attention_is_covered():
    inputs = keras.Input((5, 8))
    x = layers.GroupQueryAttention(4, 4, 2)(inputs, inputs)
    model = keras.Model(inputs, layers.Dense(3)(x))
    optimizer = kfac(model)
    x = RNG.normal(size=(4, 5, 8)).astype("float32")
    model.train_on_batch(x, RNG.integers(0, 3, size=(4, 5)))
    assert "100.0 %" in summary(optimizer)
    for name, value in optimizer.curvature.state().items():
        if name.endswith("moment"):
            assert value.any(), name


@pytest.mark.parametrize("kind", ["dot", "concat"])
def test_stock_attention_has_its_scale_covered(kind):
    inputs = keras.Input((5, 8))
    attention = layers.AdditiveAttention(name="own")
    if kind == "dot":
        attention = layers.Attention(use_scale=True, name="own")
    x = layers.Dense(3)(attention([inputs, inputs]))
    model = keras.Model(inputs, x)
    optimizer = kfac(model)
    x = RNG.normal(size=(4, 5, 8)).astype("float32")
    model.train_on_batch(x, RNG.integers(0, 3, size=(4, 5)))
    assert "own/scale  ElementwiseBlock" in summary(optimizer)


def test_a_projection_of_its_own(float64):
    """`ReversibleEmbedding(tie_weights=False)` has two blocks."""
    embedding = layers.ReversibleEmbedding(7, 4, tie_weights=False, name="e")
    inputs = keras.Input((3,), dtype="int32")
    h = keras.ops.tanh(embedding(inputs))
    model = keras.Model(inputs, embedding(h, reverse=True))
    optimizer = kfac(model)
    by_hand = hand.Hand(
        {
            "e": hand.stacked(embedding.embeddings),
            "p": hand.stacked(embedding.reverse_embeddings),
        },
        {"e", "p"},
        **SETTINGS,
    )
    for _ in range(3):
        x, y = RNG.integers(0, 7, size=(2, 4, 3))

        def forward(h, x=x, y=y):
            x = tf.one_hot(x, 7, dtype=tf.float64)
            s = h.product("p", tf.tanh(h.product("e", x)))
            return hand.cross_entropy(tf.reshape(s, [12, 7]), y.ravel())

        by_hand.update(forward, 12)
        model.train_on_batch(x, y)
    found = embedding.embeddings.numpy(), embedding.reverse_embeddings.numpy()
    assert element_error(found[0], by_hand.W["e"]) < 1e-9
    assert element_error(found[1], by_hand.W["p"]) < 1e-9
    assert "e/projection  ProjectionBlock  4, 7" in summary(optimizer)
