"""The second moment of convolution patches, without building the patches.

With x the zero-padded input, p the output positions and o, o' offsets in the
kernel, the blocks of the moment are, for stride 1,

    A[o, o'] = sum_p x[p + o] x[p + o']^T = sum_(q in box(o)) x[q] x[q + D]^T

with D = o' - o and box(o) the output positions moved by o. But for the borders
of the box this depends on D alone: the sum over all q is the autocorrelation of
x, one convolution. What lies outside the box is taken off axis by axis: of all
q with q_a outside on axis a, within the box on the axes after a, and anywhere
on those before it. These are few rows and columns of the image.

D and -D give transposed blocks, so that half of the plane is enough. Strides
become channels: x[s p + r] is channel r of a convolution with stride 1.

Multiplications for an example of n x n positions with C channels and a k x k
kernel in G groups, stride 1 and "same":

    patches            n^2 k^4 C^2 / G
    autocorrelation    n^2 k (2k - 1) C^2 / G and O(n k^3 (k - 1)) C^2 / G
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfkfac.patches import Window

# A multiplication with patches takes as long as this many without: measured on
# CPUs with 3 x 3 kernels, strides 1 and 2. The patches are written and read.
_COST_OF_PATCHES = 2
_MOST_GROUPS = 16  # Each is a convolution, unless it has one channel.
_MOST_BORDERS = 64  # So is each of these.
_PART = 2**23  # Bytes of the input that are taken at a time.


def is_cheaper(
    space: Sequence[int | None], channels: int, groups: int, window: Window
) -> bool:
    """Whether it takes less time than with the patches.

    Args:
        space: The spatial shape of the input, None where it is not known.
        channels: Of the input.
        groups, window: The convolution's.
    """
    if None in space or math.prod(window.size) == 1:
        return False
    if _MOST_GROUPS < groups < channels:
        return False
    if max(window.strides) > 1 and max(window.dilation) > 1:
        return False
    if any(n < window.extent(i) for i, n in enumerate(space)):
        return False  # All is border, and rounding is left of nothing.
    problem = _Problem(tuple(space), window)
    if sum(map(len, problem.borders)) > _MOST_BORDERS:
        return False
    positions = math.prod(window.outputs(i, n) for i, n in enumerate(space))
    with_patches = positions * math.prod(window.size) ** 2
    return problem.cost() < _COST_OF_PATCHES * with_patches


def second_moment(x: tf.Tensor, window: Window, groups: int) -> tf.Tensor:
    """Returns the sum over all patches of a a^T.

    The batch is taken in parts of 8 MiB, one after the other, so that the
    memory that it takes does not grow with the batch.

    Args:
        x: [batch, *space, channels], float32 or float64, the space known.
        window, groups: The convolution's.

    Returns:
        [groups, prod(size) c, prod(size) c], symmetric, c the channels of a
        group; in kernel order.
    """
    size = max(1, _PART // (math.prod(x.shape[1:]) * x.dtype.size))
    batch = x.shape[0]
    if batch is not None and batch <= size:
        return _of_part(x, window, groups)
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
        return i + 1, total + _of_part(part, window, groups)

    side = math.prod(window.size) * x.shape[-1] // groups
    start = 0, tf.zeros([groups, side, side], x.dtype)
    _, total = tf.while_loop(
        lambda i, _: i < parts, add, start, parallel_iterations=1
    )
    if rest:
        total += _of_part(x[-rest:], window, groups)
    return total


def _of_part(x, window, groups):
    """As `second_moment`, at once."""
    problem = _Problem(tuple(x.shape[1:-1]), window)
    x = problem.with_phases(x)
    axes = range(len(problem.size))
    # First by D on all axes; then, axis by axis, by pairs (o', o).
    E = _correlate(x, problem.pad(x, axes), problem.dilation, groups, _convolve)
    for axis in reversed(axes):
        terms = [E]
        for border in problem.borders[axis]:
            y, partners = problem.at_border(x, axis, border)
            partners = problem.pad(partners, axes[:axis])
            d = problem.dilation[:axis]
            terms.append(_correlate(y, partners, d, groups, _multiply))
        E = problem.join(axis, terms)
    return problem.in_kernel_order(E + tf.linalg.matrix_transpose(E))


@dataclasses.dataclass(frozen=True)
class _Border:
    """A position q outside some boxes on an axis, and its partners q + D.

    Attributes:
        position: q.
        outside: The o whose box does not hold it.
        least, most: The first and the last D.
    """

    position: int
    outside: frozenset[int]
    least: int
    most: int

    @property
    def count(self) -> int:
        """The number of partners."""
        return self.most - self.least + 1


class _Problem:
    """The moment of a convolution as one of stride 1.

    Attributes, of which all but the last have a number for each axis:
        size: Of the kernel.
        dilation: Of the kernel.
        space: The number of positions of x.
        outputs: Those of them in a box.
        low: How far before x the first box begins.
        borders: A tuple of `_Border`.
        phases: How many channels one channel has become.
    """

    def __init__(self, space: tuple[int, ...], window: Window):
        self._window, self._given = window, space
        sides = list(enumerate(space))
        self.outputs = tuple(window.outputs(i, n) for i, n in sides)
        self.low = tuple(window.pads(i, n)[0] for i, n in sides)
        self.size, self.dilation = window.size, window.dilation
        self.space, self.phases = space, math.prod(window.strides)
        if self.phases > 1:
            self.size = tuple(
                (k - 1) // s + 1 for k, s in zip(window.size, window.strides)
            )
            self.space = tuple(
                side + k - 1 for side, k in zip(self.outputs, self.size)
            )
            self._pads, self.low = self.low, (0,) * len(space)
        self.borders = tuple(self._borders(i) for i in range(len(space)))

    def _borders(self, axis: int) -> tuple[_Border, ...]:
        n, d, k = self.space[axis], self.dilation[axis], self.size[axis]
        begins = [o * d - self.low[axis] for o in range(k)]
        found = []
        for q in range(n):
            outside = [
                o
                for o, begin in enumerate(begins)
                if not begin <= q < begin + self.outputs[axis]
            ]
            D = [
                other - o
                for o in outside
                for other in range(o if axis == 0 else 0, k)
                if 0 <= q + (other - o) * d < n
            ]
            if D:
                found.append(_Border(q, frozenset(outside), min(D), max(D)))
        return tuple(found)

    def _offsets(self, axis: int) -> range:
        """Returns all D on an axis; on the first, one half."""
        k = self.size[axis]
        return range(0 if axis == 0 else 1 - k, k)

    def cost(self) -> int:
        """Returns the multiplications for an example, by C^2 / G."""
        axes = range(len(self.size))
        windows = [len(self._offsets(i)) for i in axes]
        total = math.prod(self.space) * math.prod(windows)
        for a in axes:
            before = math.prod(self.space[:a]) * math.prod(windows[:a])
            after = math.prod(self.outputs[a + 1 :])
            after *= math.prod(self.size[a + 1 :]) ** 2
            total += before * after * sum(b.count for b in self.borders[a])
        return total * self.phases**2

    def with_phases(self, x: tf.Tensor) -> tf.Tensor:
        """Returns x as [batch, *space, phases, channels]."""
        if self.phases == 1:
            return x[..., tf.newaxis, :]
        strides = self._window.strides
        pads, kept = [(0, 0)], [slice(None)]
        for low, n, side, s in zip(
            self._pads, self._given, self.space, strides
        ):
            high = side * s - low - n  # Negative where no kernel sees the end.
            pads.append((low, max(high, 0)))
            kept.append(slice(0, n + min(high, 0)))
        x = tf.pad(x[tuple(kept)], [*pads, (0, 0)])
        split = itertools.chain.from_iterable(zip(self.space, strides))
        x = tf.reshape(x, [-1, *split, x.shape[-1]])
        last = x.shape.rank - 1
        x = tf.transpose(x, [0, *range(1, last, 2), *range(2, last, 2), last])
        return tf.reshape(x, [-1, *self.space, self.phases, x.shape[-1]])

    def pad(self, x: tf.Tensor, axes: range) -> tf.Tensor:
        """Pads x with zeros for all D on the axes."""
        pads = [(0, 0)] * x.shape.rank
        for i in axes:
            D, d = self._offsets(i), self.dilation[i]
            pads[i + 1] = (-D[0] * d, D[-1] * d)
        return tf.pad(x, pads) if any(map(any, pads)) else x

    def at_border(self, x: tf.Tensor, axis: int, border: _Border):
        """Returns x at a border and at its partners, seen by the kernel.

        On the axes after this one the offsets of the kernel become phases.
        """
        q, d = border.position, self.dilation[axis]
        first, last = q + border.least * d, q + border.most * d
        y = self._seen(x, axis, slice(q, q + 1))
        if first == q == last:
            return y, y
        return y, self._seen(x, axis, slice(first, last + 1, d))

    def _seen(self, x, axis, at):
        """Returns x there on an axis, patches along those after it."""
        x = x[(*[slice(None)] * (axis + 1), at)]
        for i in reversed(range(axis + 1, len(self.size))):
            low, d, k = self.low[i], self.dilation[i], self.size[i]
            side = self.outputs[i]
            pads = [(0, 0)] * x.shape.rank
            pads[i + 1] = low, side + (k - 1) * d - low - x.shape[i + 1]
            x = tf.pad(x, pads) if any(pads[i + 1]) else x
            x = _views(x, i, side, [o * d for o in range(k)])
        return x

    def join(self, axis: int, terms: Sequence[tf.Tensor]) -> tf.Tensor:
        """Turns products by D into those of pairs (o', o) within their boxes.

        Args:
            axis: It; those after it are of pairs by now.
            terms: [*(D on the axes before), count, ..., groups, K, K]: with
                all D on the axis, then with the partners of each border.

        Returns:
            [*(D on the axes before), groups, size K, size K]; on the first axis
            half of the sum, such that its transpose is the rest.
        """
        before = terms[0].shape[:axis]
        groups, K = terms[0].shape[-3:-1]
        flat = [tf.reshape(t, [*before, -1, groups * K * K]) for t in terms]
        weights = tf.constant(self._weights(axis), terms[0].dtype)
        E = tf.matmul(weights, tf.concat(flat, axis=-2))
        k = self.size[axis]
        E = tf.reshape(E, [-1, k, k, groups, K, K])
        E = tf.transpose(E, [0, 3, 1, 4, 2, 5])
        return tf.reshape(E, [*before, groups, k * K, k * K])

    def _weights(self, axis: int) -> np.ndarray:
        """Returns the part of each term of `join` in each pair (o', o)."""
        k, D = self.size[axis], self._offsets(axis)
        borders = self.borders[axis]
        count = len(D) + sum(border.count for border in borders)
        weights = np.zeros([k, k, count])
        for o, other in itertools.product(range(k), repeat=2):
            if other - o not in D:
                continue
            weight = 0.5 if axis == 0 and other == o else 1.0
            weights[other, o, D.index(other - o)] = weight
            at = len(D)
            for b in borders:
                if o in b.outside and b.least <= other - o <= b.most:
                    weights[other, o, at + other - o - b.least] = -weight
                at += b.count
        return weights.reshape(k * k, count)

    def in_kernel_order(self, A: tf.Tensor) -> tf.Tensor:
        """Brings the sides from (place, phase, c) to (o, c)."""
        if self.phases == 1:
            return A
        strides = self._window.strides
        units = []
        for offset in itertools.product(*map(range, self._window.size)):
            place = tuple(o // s for o, s in zip(offset, strides))
            phase = tuple(o % s for o, s in zip(offset, strides))
            units.append(
                np.ravel_multi_index(place, self.size) * self.phases
                + np.ravel_multi_index(phase, strides)
            )
        c = A.shape[-1] // (math.prod(self.size) * self.phases)
        index = np.add.outer(np.array(units) * c, np.arange(c)).ravel()
        return tf.gather(tf.gather(A, index, axis=1), index, axis=2)


def _correlate(
    y: tf.Tensor,
    x: tf.Tensor,
    dilation: Sequence[int],
    groups: int,
    product: Callable[..., tf.Tensor],
) -> tf.Tensor:
    """Returns sum_q x[q + d D] y[q]^T for all D >= 0 for which x is there.

    Args:
        y, x: [batch, *space, phases, channels], of which x has more positions.
        dilation: d on the first axes; 1 on the others.
        groups: Channels of different groups are not multiplied.
        product: How it is done for one group: `_convolve` or, for few
            positions, `_multiply`.

    Returns:
        [*(D on each axis), groups, phases c, phases c], c the channels of a
        group.
    """
    n = y.shape.rank - 3
    d = [*dilation, *[1] * (n - len(dilation))]
    if max(d) > 1:  # The residues of the positions become examples.
        rest = [(0, -side % b) for side, b in zip(y.shape[1:], d)]
        y, x = (tf.space_to_batch(v, d, rest) for v in (y, x))
    windows = [
        1 + long - short for long, short in zip(x.shape[1 : n + 1], y.shape[1:])
    ]
    channels = y.shape[-1]
    if groups == channels > 1:
        return _by_channel(y, x, windows)
    found = []
    for y_, x_ in zip(tf.split(y, groups, -1), tf.split(x, groups, -1)):
        side = y_.shape[-1] * y_.shape[-2]
        y_, x_ = (tf.reshape(v, [-1, *v.shape[1:-2], side]) for v in (y_, x_))
        found.append(product(y_, x_, [*windows, side, side]))
    return tf.stack(found, axis=n)


def _views(x, axis, side, offsets):
    """Returns x moved by each offset along an axis, the offsets as phases.

    Args:
        x: [batch, *space, phases, channels].
        axis: Of the space.
        side: How many positions of it to keep.
        offsets: Not negative.

    Returns:
        [batch, *space, offsets phases, channels].
    """
    index = np.add.outer(np.arange(side), np.array(offsets))
    x = tf.gather(x, index, axis=axis + 1)
    rank = x.shape.rank
    if axis + 3 < rank - 2:  # Offsets come after the last axis of the space.
        order = [*range(axis + 2), *range(axis + 3, rank - 2), axis + 2]
        x = tf.transpose(x, [*order, rank - 2, rank - 1])
    *space, k, phases, channels = x.shape[1:]
    return tf.reshape(x, [-1, *space, k * phases, channels])


def _moved(x, y, windows):
    """Returns x[q + D] for the q of y, for each D."""
    return [
        x[(slice(None), *(slice(o, o + n) for o, n in zip(D, y.shape[1:])))]
        for D in itertools.product(*map(range, windows))
    ]


def _multiply(y, x, shape):
    """Returns sum_q x[q + D] y[q]^T, of this shape, by one product."""
    *windows, rows, columns = shape
    moved = x[..., tf.newaxis, :]
    for i, k in reversed(list(enumerate(windows))):
        if k > 1:
            moved = _views(moved, i, y.shape[i + 1], range(k))
    moved = tf.reshape(moved, [-1, math.prod(windows) * rows])
    y = tf.reshape(y, [-1, columns])
    return tf.reshape(tf.matmul(moved, y, transpose_a=True), shape)


def _convolve(y, x, shape):
    """Returns sum_q x[q + D] y[q]^T, of this shape, by a convolution."""
    if len(shape) == 3:
        y, x = y[:, :, tf.newaxis], x[:, :, tf.newaxis]
        wide = _convolve(y, x, [shape[0], 1, *shape[1:]])
        return tf.squeeze(wide, axis=1)
    name = {4: "Conv2DBackpropFilter", 5: "Conv3DBackpropFilterV2"}
    return getattr(tf.raw_ops, name[len(shape)])(
        input=x,
        filter_sizes=shape,
        out_backprop=y,
        strides=[1] * len(shape),
        padding="VALID",
    )


def _by_channel(y, x, windows):
    """As `_correlate`, each channel by itself."""
    n = len(windows)
    found = []
    for moved in _moved(x, y, windows):
        product = moved[..., :, tf.newaxis, :] * y[..., tf.newaxis, :, :]
        found.append(tf.reduce_sum(product, axis=range(n + 1)))
    by_channel = tf.transpose(tf.stack(found), [0, 3, 1, 2])
    return tf.reshape(by_channel, [*windows, *by_channel.shape[1:]])
