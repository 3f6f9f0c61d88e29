"""LoRA: the two products in place of the kernel, which is frozen."""

import hand
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from oracle import element_error
from own_models import eagerly, summary
from wrapped import RNG, SETTINGS, kfac, randomized

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
