"""Second moments of convolution patches, with and without the patches."""

import dataclasses
import itertools
import math

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Window:
    """What a convolution sees: one number for each spatial axis.

    Attributes:
        size: Of the kernel.
        strides: Between output positions.
        dilation: Between the elements of the kernel.
        padding: "valid", "same" or (one spatial axis) "causal", with zeros as
            Keras pads; or, where the strides are 1, the numbers of zeros
            before and after the inputs of each axis. Negative numbers leave
            inputs out.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]

    def extent(self, axis: int) -> int:
        """Returns how many inputs the kernel spans."""
        return (self.size[axis] - 1) * self.dilation[axis] + 1

    def outputs(self, axis: int, n):
        """Returns the number of output positions for `n` inputs."""
        seen = n
        if self.padding not in ("same", "causal"):
            seen += sum(self.pads(axis, n)) - self.extent(axis) + 1
        return (seen + self.strides[axis] - 1) // self.strides[axis]

    def pads(self, axis: int, n) -> tuple:
        """Returns the zeros before and after `n` inputs."""
        if not isinstance(self.padding, str):
            return self.padding[axis]
        if self.padding == "valid":
            return 0, 0
        if self.padding == "causal":
            return self.extent(axis) - 1, 0
        reach = (self.outputs(axis, n) - 1) * self.strides[axis]
        total = reach + self.extent(axis) - n
        total = max(total, 0) if isinstance(n, int) else tf.maximum(total, 0)
        return total // 2, total - total // 2


def extract(x: tf.Tensor, window: Window) -> tf.Tensor:
    """Returns what each position of the kernel sees.

    Args:
        x: [batch, *space, channels].
        window: The convolution's.

    Returns:
        [batch * output positions, prod(size), channels], the offsets in kernel
        order.
    """
    x = _padded(x, window)
    shape = tf.shape(x)
    views = []
    for offset in itertools.product(*map(range, window.size)):
        index = [slice(None)]
        for i, o in enumerate(offset):
            start = o * window.dilation[i]
            stop = start + shape[i + 1] - window.extent(i) + 1
            index.append(slice(start, stop, window.strides[i]))
        views.append(x[tuple(index)])
    patches = tf.stack(views, axis=-2)
    return tf.reshape(patches, [-1, math.prod(window.size), x.shape[-1]])


def _padded(x, window):
    """Returns x with the zeros around its space that the window has."""
    if not isinstance(window.padding, str):
        pads = window.padding
        cut = [slice(max(-a, 0), min(b, 0) or None) for a, b in pads]
        x = x[(slice(None), *cut)]
        pads = [(max(a, 0), max(b, 0)) for a, b in pads]
    else:
        sizes = [x.shape[i + 1] or tf.shape(x)[i + 1] for i in _axes(window)]
        pads = [window.pads(i, n) for i, n in enumerate(sizes)]
    return tf.pad(x, [(0, 0), *pads, (0, 0)])


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


def second_moment(x: tf.Tensor, window: Window, groups: int) -> tf.Tensor:
    """Returns the sum over all patches of a a^T, in few operations.

    Args:
        x: [batch, *space, channels]; no side needs to be known.
        window, groups: The convolution's.

    Returns:
        [groups, prod(size) c, prod(size) c], c the channels of a group; in
        kernel order.
    """
    shape = tf.unstack(tf.shape(x), len(window.size) + 2)
    channels = shape[-1] // groups
    x = tf.pad(x, [(0, 0), *[(0, 1)] * len(window.size), (0, 0)])
    x = tf.reshape(
        x, [shape[0], *(n + 1 for n in shape[1:-1]), groups, channels]
    )
    for i, size in enumerate(window.size):
        # Of [batch, *(outputs, size) on the axes before, *space, groups, c].
        n = shape[i + 1]
        begins = window.strides[i] * tf.range(window.outputs(i, n))
        places = np.arange(size) * window.dilation[i] - window.pads(i, n)[0]
        q = begins[:, tf.newaxis] + places
        q = tf.where((q < 0) | (q > n), n, q)  # To the zeros after all.
        x = tf.gather(x, q, axis=2 * i + 1)
    last = x.shape.rank - 2
    order = [last, 0, *range(1, last, 2), *range(2, last, 2), last + 1]
    side = math.prod(window.size) * channels
    a = tf.reshape(tf.transpose(x, order), [groups, -1, side])
    return tf.matmul(a, a, transpose_a=True)


def _axes(window: Window) -> range:
    return range(len(window.size))


def sums(x: tf.Tensor, window: Window, groups: int) -> tf.Tensor:
    """Returns the sum of all patches, [groups, prod(size) c], c per group.

    Args:
        x: [batch, *space, channels], the space known.
        window, groups: The convolution's.
    """
    total = tf.reduce_sum(x, axis=0)
    for i in _axes(window):
        n = x.shape[i + 1]
        low = window.pads(i, n)[0]
        seen = [[0.0] * n for _ in range(window.size[i])]
        for o, row in enumerate(seen):
            for p in range(window.outputs(i, n)):
                q = p * window.strides[i] + o * window.dilation[i] - low
                if 0 <= q < n:
                    row[q] = 1.0
        # The first axis is the next one that is still of positions.
        total = tf.tensordot(total, tf.constant(seen, x.dtype), [[0], [1]])
    # Now [channels, *size].
    total = tf.reshape(total, [groups, x.shape[-1] // groups, -1])
    return tf.reshape(tf.linalg.matrix_transpose(total), [groups, -1])
