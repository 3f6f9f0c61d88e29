"""Layers that hold, wrap or change others: LoRA, spectral norms, attention."""

import hand
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from oracle import cross_entropy, element_error

import tfkfac

SETTINGS = {"learning_rate": 0.1, "momentum": 0.9, "damping": 0.1}
RNG = np.random.default_rng(0)
eagerly = pytest.mark.parametrize(
    "eager", [True, False], ids=["eager", "graph"]
)


def kfac(model, eager=False, **settings):
    """Compiles a model; returns its optimizer."""
    settings = {**SETTINGS, "fisher": "empirical", **settings}
    optimizer = tfkfac.KFAC(
        model=model, kl_clip=None, inverse_update_period=1, **settings
    )
    model.compile(optimizer, cross_entropy(), run_eagerly=eager)
    return optimizer


def summary(optimizer):
    lines = []
    optimizer.summary(print_fn=lines.append)
    return "\n".join(lines)


def randomized(*variables):
    for v in variables:
        v.assign(RNG.normal(size=v.shape) / 2)


# LoRA. Equation, bias axes, rank 2; by hand the two products of the rows.
LORA = {
    "remaining": ("bti,io->bto", "o", (3, 5)),
    "heads": ("bti,iho->btho", "ho", (3, 2, 5)),
    "contracted": ("bti,oi->bto", "o", (3, 5)),
}


@eagerly
def test_low_rank_of_a_dense_layer(float64, eager):
    """Products by A and by B, with the bias; the kernel is frozen."""
    low, last = layers.Dense(5, "tanh", name="low"), layers.Dense(3)
    model = keras.Sequential([keras.Input((4,)), low, last])
    low.enable_lora(2, lora_alpha=3)
    A, B = low.lora_kernel_a, low.lora_kernel_b
    randomized(A, B, low.bias)
    kernel = low._kernel.numpy()
    optimizer = kfac(model, eager)
    by_hand = hand.Hand(
        {
            "A": hand.stacked(A),
            "B": hand.stacked(B, low.bias),
            "last": hand.stacked(last.kernel, last.bias),
        },
        {"A", "B", "last"},
        **SETTINGS,
    )
    for _ in range(3):
        x, y = RNG.normal(size=(6, 4)), RNG.integers(0, 3, size=6)

        def forward(h, x=x, y=y):
            x = tf.constant(x)
            s = h.product("B", h.product("A", x) * 3 / 2) + x @ kernel
            return hand.cross_entropy(h.product("last", tf.tanh(s)), y)

        by_hand.update(forward, 6)
        model.train_on_batch(x, y)
    # LoRA's weights are in float32, whatever floatx is.
    W = by_hand.W
    assert element_error(A.numpy(), W["A"]) < 1e-5
    assert element_error(hand.stacked(B, low.bias), W["B"]) < 1e-5
    np.testing.assert_array_equal(low._kernel.numpy(), kernel)
    text = summary(optimizer)
    assert "low/lora_kernel_a  ProductBlock  4, 2" in text
    assert "low/lora_kernel_b  ProductBlock  3, 5" in text


@pytest.mark.parametrize("kind", LORA)
def test_low_rank_of_an_einsum(kind):
    """Its output is that of Keras, and all that trains is covered."""
    equation, bias_axes, shape = LORA[kind]
    low = layers.EinsumDense(equation, shape, bias_axes=bias_axes, name="low")
    model = keras.Sequential(
        [keras.Input((3, 4)), low, layers.Reshape((3, -1)), layers.Dense(3)]
    )
    low.enable_lora(2)
    randomized(low.lora_kernel_a, low.lora_kernel_b, low.bias)
    optimizer = kfac(model, learning_rate=0.0)
    x = RNG.normal(size=(4, 3, 4)).astype("float32")
    y = RNG.integers(0, 3, size=(4, 3))
    loss = model.train_on_batch(x, y)
    expected = model.test_on_batch(x, y)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    text = summary(optimizer)
    assert "100.0 %" in text and "low/lora_kernel_a  ProductBlock" in text


def test_low_rank_that_is_left_out():
    """It is named, with the reason."""
    embedding = layers.Embedding(7, 4, name="embedding")
    convolution = layers.Conv1D(3, 2, name="convolution")
    model = keras.Sequential(
        [keras.Input((3,), dtype="int32"), embedding, convolution]
    )
    embedding.enable_lora(2)
    convolution.enable_lora(2)
    text = summary(kfac(model))
    assert text.count("LoRA is enabled, which is covered in Dense") == 5


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
