"""Second moments of convolution patches."""

import itertools
import math
from collections.abc import Sequence

import tensorflow as tf


def _pad(
    x: tf.Tensor,
    kernel_size: Sequence[int],
    strides: Sequence[int],
    padding: str,
    dilation: Sequence[int],
) -> tf.Tensor:
    """Pads the spatial axes with zeros, as Keras' convolutions do."""
    paddings = [(0, 0)]
    for axis, (k, s, d) in enumerate(zip(kernel_size, strides, dilation)):
        extent = (k - 1) * d + 1
        if padding == "valid":
            paddings.append((0, 0))
        elif padding == "causal":
            paddings.append((extent - 1, 0))
        else:
            n = x.shape[axis + 1] or tf.shape(x)[axis + 1]
            total = tf.maximum(((n + s - 1) // s - 1) * s + extent - n, 0)
            paddings.append((total // 2, total - total // 2))
    return tf.pad(x, paddings + [(0, 0)])


def extract(
    x: tf.Tensor,
    kernel_size: Sequence[int],
    strides: Sequence[int],
    padding: str,
    dilation: Sequence[int],
) -> tf.Tensor:
    """Returns what each position of the kernel sees.

    Args:
        x: [batch, *space, channels].
        kernel_size, strides, dilation: One number per spatial axis.
        padding: "valid", "same" or (one spatial axis) "causal".

    Returns:
        [batch * output positions, prod(kernel_size), channels], the offsets in
        kernel order.
    """
    x = _pad(x, kernel_size, strides, padding, dilation)
    shape = tf.shape(x)
    spans = [
        shape[axis + 1] - (k - 1) * d
        for axis, (k, d) in enumerate(zip(kernel_size, dilation))
    ]
    views = []
    for offset in itertools.product(*(range(k) for k in kernel_size)):
        index = [slice(None)]
        for o, d, s, span in zip(offset, dilation, strides, spans):
            index.append(slice(o * d, o * d + span, s))
        views.append(x[tuple(index)])
    patches = tf.stack(views, axis=-2)
    return tf.reshape(patches, [-1, math.prod(kernel_size), x.shape[-1]])


def group_rows(patches: tf.Tensor, groups: int) -> tf.Tensor:
    """Splits the channels of [rows, k, channels] into groups.

    Returns:
        [groups, rows, k * channels / groups], columns in kernel order.
    """
    _, k, channels = patches.shape
    if groups == 1:
        return tf.reshape(patches, [1, -1, k * channels])
    split = tf.reshape(patches, [-1, k, groups, channels // groups])
    split = tf.transpose(split, [2, 0, 1, 3])
    return tf.reshape(split, [groups, -1, k * channels // groups])
