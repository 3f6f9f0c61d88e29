"""The second moment of convolution patches, without building the patches.

With x the zero-padded input, p the output positions and o, o' offsets in the
kernel, the blocks of the moment are, for stride 1,

    A[o', o] = sum_p x[p + o'] x[p + o]^T = sum_(q in box(o)) x[q + D] x[q]^T

with D = o' - o and box(o) the output positions moved by o. But for the borders
of the box this depends on D alone: the sum over all q is the autocorrelation of
x. A box is all q but those outside on an axis, so that, over n axes,

    sum_(q in box) = prod_(axes) (all q_a - q_a outside)

is 2^n sums of which all but the first are of few rows and columns.

D and -D give transposed blocks, so that half of the plane is enough. Strides
become channels: x[s p + r] is channel r of a convolution with stride 1.

Multiplications for an example of n x n positions with C channels and a k x k
kernel in G groups, stride 1 and "same":

    patches            n^2 k^4 C^2 / G
    autocorrelation    n^2 k (2k - 1) C^2 / G and O(n k^3) C^2 / G, or less by
                       frequencies (`tfkfac.convolution.frequencies`)
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfkfac.convolution.axis import Axis
from tfkfac.convolution.correlation import (
    correlations,
    examples_of_part,
    multiplications,
)
from tfkfac.convolution.patches import Window

# To write and read an element of the patches takes as long as this many
# multiplications: measured on CPUs with 3 x 3 kernels, strides 1 and 2.
_COST_OF_PATCHES = 220
_MOST_GROUPS = 16  # Each is a convolution, unless it has one channel.
_LARGEST_SIZE = 32  # Of a kernel: the weights of its borders grow with size^4.


def is_cheaper(
    space: Sequence[int | None], channels: int, groups: int, window: Window
) -> bool:
    """Whether it takes less time than with the patches.

    Args:
        space: The spatial shape of the input, None where it is not known.
        channels: Of the input.
        groups, window: The convolution's.
    """
    known = [n for n in space if n is not None]
    if len(known) < len(space) or math.prod(window.size) == 1:
        return False
    if _MOST_GROUPS < groups < channels or max(window.size) > _LARGEST_SIZE:
        return False
    if max(window.strides) > 1 and max(window.dilation) > 1:
        return False
    if any(n < window.extent(i) for i, n in enumerate(known)):
        return False  # All is border, and rounding is left of nothing.
    positions = math.prod(window.outputs(i, n) for i, n in enumerate(known))
    side = math.prod(window.size) * channels // groups
    with_patches = positions * groups * side * (side + _COST_OF_PATCHES)
    return _Problem(tuple(known), window).cost(channels, groups) < with_patches


def second_moment(x: tf.Tensor, window: Window, groups: int) -> tf.Tensor:
    """Returns the sum over all patches of a a^T.

    Args:
        x: [batch, *space, channels], float32 or float64, the space known.
        window, groups: The convolution's.

    Returns:
        [groups, prod(size) c, prod(size) c], symmetric, c the channels of a
        group; in kernel order.
    """
    problem = _Problem(tuple(x.shape[1:-1]), window)
    E = _of_parts(x, problem, groups)
    for i in reversed(range(len(problem.axes))):
        E = _join(E, i, problem.axes[i])
    return problem.in_kernel_order(E + tf.linalg.matrix_transpose(E))


def _of_parts(x, problem, groups):
    """Returns the correlations, by parts of the batch of 8 MiB.

    They are taken one after the other, so that the memory that it takes does
    not grow with the batch.
    """
    size = examples_of_part(x.shape[1:], x.dtype.size)
    batch = x.shape[0]
    if batch is not None and batch <= size:
        return _of_part(x, problem, groups)
    if batch is None:
        parts, rest = (tf.shape(x)[0] + size - 1) // size, 0
    else:
        parts, rest = divmod(batch, size)

    def add(i, total):
        begin = i * size
        if batch is None:
            part = x[begin : begin + size]
        else:  # All of one size, which XLA needs to know.
            at = [begin, *[0] * (x.shape.rank - 1)]
            part = tf.slice(x, at, [size, *x.shape[1:]])
        return i + 1, total + _of_part(part, problem, groups)

    K = problem.phases * x.shape[-1] // groups
    terms = [len(axis.offsets) + len(axis.borders) for axis in problem.axes]
    _, total = tf.while_loop(
        lambda i, _: i < parts,
        add,
        (0, tf.zeros([*terms, groups, K, K], x.dtype)),
        parallel_iterations=1,
        maximum_iterations=None if batch is None else parts,
    )
    if rest:
        total += _of_part(x[-rest:], problem, groups)
    return total


def _of_part(x, problem, groups):
    return correlations(problem.with_phases(x), problem.axes, groups)


class _Problem:
    """The moment of a convolution as one of stride 1.

    Attributes:
        axes: Of the image.
        phases: How many channels one channel has become.
    """

    def __init__(self, space: tuple[int, ...], window: Window):
        self._window, self._given = window, space
        self.phases = math.prod(window.strides)
        self.axes = []
        for i, n in enumerate(space):
            k, outputs = window.size[i], window.outputs(i, n)
            low = window.pads(i, n)[0]
            if self.phases > 1:
                k = (k - 1) // window.strides[i] + 1
                n, low = outputs + k - 1, 0
            self.axes.append(
                Axis(k, window.dilation[i], n, outputs, low, half=i == 0)
            )

    def cost(self, channels: int, groups: int) -> float:
        """Returns the multiplications for an example."""
        K = self.phases * channels // groups
        examples = examples_of_part([*self._given, channels])
        return multiplications(self.axes, K, groups, examples)

    def with_phases(self, x: tf.Tensor) -> tf.Tensor:
        """Returns x as [batch, *space, phases, channels]."""
        if self.phases == 1:
            return x[..., tf.newaxis, :]
        strides = self._window.strides
        space = [axis.space for axis in self.axes]
        pads, kept = [(0, 0)], [slice(None)]
        for i, (n, s) in enumerate(zip(self._given, strides)):
            low = self._window.pads(i, n)[0]
            high = space[i] * s - low - n
            # It is negative where no kernel sees the end.
            pads.append((low, max(high, 0)))
            kept.append(slice(0, n + min(high, 0)))
        x = tf.pad(x[tuple(kept)], [*pads, (0, 0)])
        split = itertools.chain.from_iterable(zip(space, strides))
        x = tf.reshape(x, [-1, *split, x.shape[-1]])
        last = x.shape.rank - 1
        x = tf.transpose(x, [0, *range(1, last, 2), *range(2, last, 2), last])
        return tf.reshape(x, [-1, *space, self.phases, x.shape[-1]])

    def in_kernel_order(self, A: tf.Tensor) -> tf.Tensor:
        """Brings the sides from (place, phase, c) to (o, c)."""
        if self.phases == 1:
            return A
        strides = self._window.strides
        size = [axis.size for axis in self.axes]
        units = []
        for offset in itertools.product(*map(range, self._window.size)):
            place = tuple(o // s for o, s in zip(offset, strides))
            phase = tuple(o % s for o, s in zip(offset, strides))
            units.append(
                np.ravel_multi_index(place, size) * self.phases
                + np.ravel_multi_index(phase, strides)
            )
        c = A.shape[-1] // (math.prod(size) * self.phases)
        index = np.add.outer(np.array(units) * c, np.arange(c)).ravel()
        return tf.gather(tf.gather(A, index, axis=1), index, axis=2)


def _join(E: tf.Tensor, i: int, axis: Axis) -> tf.Tensor:
    """Turns sums by offsets D into those of pairs (o', o) within their boxes.

    Args:
        E: [*(D and borders on the axes before), D and borders, groups, K, K].
        i: Which axis; those after it are of pairs by now.
        axis: It.

    Returns:
        [*(D and borders on the axes before), groups, size K, size K]; with the
        first axis half of the sum, such that its transpose is the rest.
    """
    *before, _, groups, K, _ = E.shape
    flat = tf.reshape(E, [*before, -1, groups * K * K])
    k = axis.size
    weights = axis.weights().reshape(k * k, -1)
    E = tf.matmul(tf.constant(weights, E.dtype), flat)
    E = tf.reshape(E, [-1, k, k, groups, K, K])
    E = tf.transpose(E, [0, 3, 1, 4, 2, 5])
    return tf.reshape(E, [*before, groups, k * K, k * K])
