"""Low-rank adaptation (LoRA): the two products that Keras makes one kernel of.

Keras adds (alpha / rank) A B to the frozen kernel, so that no product of a
layer's call is one by A or by B (Hu et al. 2021 have s = W x + B A x). Recorded
calls take the products one by one, which returns the same up to rounding.
"""

import functools
from collections.abc import Callable

import keras
import tensorflow as tf
from keras import ops

from tfkfac import keras_compat


def call_of(layer: keras.layers.Layer) -> Callable | None:
    """Returns what stands in place of the call of a layer with LoRA.

    It is None where there is no LoRA, or none that is covered: of layers that
    are quantized or override `call`, and of convolutions and embeddings.
    """
    if not getattr(layer, "lora_enabled", False):
        return None
    if getattr(layer, "quantization_mode", None) is not None:
        return None
    for stock, apply in (
        (keras.layers.Dense, _dense),
        (keras.layers.EinsumDense, _einsum_dense),
    ):
        if isinstance(layer, stock) and type(layer).call is stock.call:
            return functools.partial(apply, layer)
    return None


def _dense(layer, inputs, training=None):
    del training
    A, B = layer.lora_kernel_a, layer.lora_kernel_b
    s = ops.matmul(_scaled(layer, ops.matmul(inputs, A)), B)
    kernel = keras_compat.stored_kernel(layer)
    return _finished(layer, s, ops.matmul(inputs, kernel))


def _einsum_dense(layer, inputs, training=None):
    """The last axis z of the kernel is that of B, [rank, z]; A has the others.

    Where the layer contracts z, B comes first.
    """
    del training
    A, B = layer.lora_kernel_a, layer.lora_kernel_b
    left, y = layer.equation.replace(" ", "").split("->")
    x, k = left.split(",")
    z = k[-1]
    r = next(c for c in "rstuvwxyzabcdefgh" if c not in left + y)
    of_A, of_B = k[:-1] + r, r + z
    if z in y:
        inner = y.replace(z, r)
        h = ops.einsum(f"{x},{of_A}->{inner}", inputs, A)
        s = ops.einsum(f"{inner},{of_B}->{y}", _scaled(layer, h), B)
    else:
        inner = x.replace(z, r)
        h = ops.einsum(f"{x},{of_B}->{inner}", inputs, B)
        s = ops.einsum(f"{inner},{of_A}->{y}", _scaled(layer, h), A)
    kernel = keras_compat.stored_kernel(layer)
    return _finished(layer, s, ops.einsum(layer.equation, inputs, kernel))


def _scaled(layer, h: tf.Tensor) -> tf.Tensor:
    return h * (layer.lora_alpha / layer.lora_rank)


def _finished(layer, s: tf.Tensor, of_kernel: tf.Tensor) -> tf.Tensor:
    """Returns the layer's output; the bias goes with the last product."""
    if layer.bias is not None:
        s = ops.add(s, layer.bias)
    s = ops.add(s, of_kernel)
    return s if layer.activation is None else layer.activation(s)
