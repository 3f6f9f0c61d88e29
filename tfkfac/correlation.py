"""Products of an image's channels with themselves, some way apart.

For an image x of K channels and an offset D in positions

    E(D) = sum_q x[q + D] x[q]^T                                     [K, K]

over the positions q of all examples or, on some axes, those at a border alone.
Three ways to the sum over all q, of n x n positions and w offsets:

    convolution    n^2 w K^2 multiplications for an example
    by channel     the same, where a group has one channel (depthwise)
    frequencies    3 (n + k)^2 K^2 / 2, k the largest offset, and the Fourier
                   transform by products, 3 n (n + k)^2 K: E(D) is
                   sum_f exp(2 pi i f D) X(f) X(f)^H / (n + k)^2
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# A multiplication by frequencies takes as long as this many of a convolution:
# measured on CPUs, 2.0 to 2.6 with 32 to 256 channels.
_COST_OF_FREQUENCIES = 2.3
_MOST_BYTES = 2**23  # Of the products of frequencies at a time.


@dataclasses.dataclass(frozen=True)
class Axis:
    """A kernel on one axis of a padded image, with stride 1.

    Offset o of the kernel sees the positions of a box, which begins at
    o * dilation - low.

    Attributes:
        size: Of the kernel.
        dilation: Between its elements.
        space: The number of positions of the image.
        outputs: Of them in a box.
        low: How far before the image the first box begins.
        half: Whether D and -D are one, and D is not negative.
    """

    size: int
    dilation: int
    space: int
    outputs: int
    low: int
    half: bool

    @property
    def offsets(self) -> range:
        """All D, in elements of the kernel."""
        return range(0 if self.half else 1 - self.size, self.size)

    @property
    def reach(self) -> int:
        """The largest D, in positions."""
        return (self.size - 1) * self.dilation

    @functools.cached_property
    def borders(self) -> list[tuple[int, int]]:
        """All (q, D) of which a box that D begins in does not hold q."""
        found = []
        for q in range(self.space):
            ends = [
                other - o
                for o in self._outside(q)
                for other in range(o if self.half else 0, self.size)
                if 0 <= q + (other - o) * self.dilation < self.space
            ]
            found += [(q, D) for D in sorted(set(ends))]
        return found

    def _outside(self, q: int) -> list[int]:
        """Returns the offsets of the kernel whose box does not hold q."""
        begins = [o * self.dilation - self.low for o in range(self.size)]
        return [
            o
            for o, begin in enumerate(begins)
            if not begin <= q < begin + self.outputs
        ]

    def weights(self) -> np.ndarray:
        """Returns the part of each D and each border in each pair of offsets.

        Returns:
            [size, size, D and borders] for the pair (o', o) that is D = o' - o
            apart: the sum over all q, less those that its box does not hold.
            With `half`, such that its transpose is the rest.
        """
        D, k = self.offsets, self.size
        weights = np.zeros([k, k, len(D) + len(self.borders)])
        for o, other in itertools.product(range(k), repeat=2):
            if other - o not in D:
                continue
            weight = 0.5 if self.half and other == o else 1.0
            weights[other, o, D.index(other - o)] = weight
            for i, (q, apart) in enumerate(self.borders, len(D)):
                if apart == other - o and o in self._outside(q):
                    weights[other, o, i] = -weight
        return weights


def multiplications(axes: Sequence[Axis], channels: int, groups: int) -> float:
    """Returns those for an example at most, as many of a convolution.

    Args:
        axes: Of the image.
        channels: K, of a group.
        groups: Of channels that are not multiplied with each other.
    """
    convolution = _of_convolution(axes, channels, groups)
    both = [x.space * len(x.offsets) + len(x.borders) for x in axes]
    borders = math.prod(both) * groups * channels**2 - convolution
    if not _has_frequencies(axes, channels, groups):
        return convolution + borders
    return _of_frequencies(axes, channels, groups) + borders


def _of_convolution(axes, channels, groups):
    positions = math.prod(x.space for x in axes)
    offsets = math.prod(len(x.offsets) for x in axes)
    return positions * offsets * groups * channels**2


def _of_frequencies(axes, channels, groups):
    rows, columns = axes
    F, M = (rows.space + rows.reach) // 2 + 1, columns.space + columns.reach
    first = 2 * F * rows.space * columns.space * groups * channels
    second = 4 * F * M * columns.space * groups * channels
    products = 3 * F * M * groups * channels**2
    return _COST_OF_FREQUENCIES * (first + second + products)


def _has_frequencies(axes, channels, groups):
    """Whether they take less time than a convolution."""
    return len(axes) == 2 and (
        _of_frequencies(axes, channels, groups)
        < _of_convolution(axes, channels, groups)
    )


def correlations(
    x: tf.Tensor, axes: Sequence[Axis], groups: int, at: tuple[bool, ...] = ()
) -> tf.Tensor:
    """Returns the sums over all positions and over those at borders.

    Args:
        x: [batch, *space, phases, channels], float32 or float64.
        axes: Of the space.
        groups: Channels of different groups are not multiplied.
        at: On the first axes, whether to look at the borders alone.

    Returns:
        [*(all D, then all borders, on each axis), groups, K, K], K the channels
        of a group in all phases. Axes of which `at` tells have only the one.
    """
    if len(at) == len(axes):
        if any(at):
            i = _transposed(axes, at)
            if i is not None:
                return _half_at_borders(x, axes, groups, at, i)
            return _at_borders(x, axes, groups, at)
        return _everywhere(x, axes, groups)
    found = correlations(x, axes, groups, (*at, False))
    if not axes[len(at)].borders:
        return found
    borders = correlations(x, axes, groups, (*at, True))
    return tf.concat([found, borders], axis=len(at))


def _at_borders(x, axes, groups, at):
    """By products: of patches, on the other axes."""
    n, channels = len(axes), x.shape[-1]
    K = x.shape[-2] * channels // groups
    y = x = tf.reshape(x, [-1, *x.shape[1:-1], groups, channels // groups])
    here = [i for i in range(n) if at[i]]
    free = [i for i in range(n) if not at[i]]
    for i in here:
        q, D = np.array(axes[i].borders).T
        y = tf.gather(y, q, axis=i + 1)
        x = tf.gather(x, q + D * axes[i].dilation, axis=i + 1)
    # Of [batch, *space, phases, groups, channels of a group].
    order = [*(i + 1 for i in here), n + 2, 0, *(i + 1 for i in free)]
    x, y = (tf.transpose(v, [*order, n + 1, n + 3]) for v in (x, y))
    x = _views(x, len(here) + 2, [axes[i] for i in free])
    count = [len(axes[i].borders) for i in here]
    offsets = [len(axes[i].offsets) for i in free]
    x = tf.reshape(x, [*count, groups, -1, math.prod(offsets) * K])
    y = tf.reshape(y, [*count, groups, -1, K])
    E = tf.matmul(x, y, transpose_a=True)
    E = tf.reshape(E, [*count, groups, *offsets, K, K])
    of_axis = dict(zip(here, itertools.count()))
    of_axis |= dict(zip(free, itertools.count(len(here) + 1)))
    order = [*(of_axis[i] for i in range(n)), len(here), n + 1, n + 2]
    return tf.transpose(E, order)


def _transposed(axes, at):
    """Returns an axis on which D and -D give transposed sums, or None.

    The borders are apart from themselves alone, and stand for both halves of
    the plane.
    """
    borders = [axis.borders for axis, here in zip(axes, at) if here]
    if not at[0] or all(at) or any(D for _, D in itertools.chain(*borders)):
        return None
    return at.index(False)


def _half_at_borders(x, axes, groups, at, i):
    """As `_at_borders`; on axis i that of D stands for -D too, which has 0."""
    half = dataclasses.replace(axes[i], half=True)
    E = _at_borders(x, [*axes[:i], half, *axes[i + 1 :]], groups, at)
    shape = [-1, *[1] * (E.shape.rank - i - 1)]
    weights = [1.0] + [2.0] * (axes[i].size - 1)
    E *= tf.reshape(tf.constant(weights, E.dtype), shape)
    pads = [(0, 0)] * E.shape.rank
    pads[i] = axes[i].size - 1, 0
    return tf.pad(E, pads)


def _views(x, first, axes):
    """Returns x moved by all D on axes of the space, of which `first` is one.

    Args:
        x: [..., *space, phases, channels].

    Returns:
        [..., *space, *offsets, phases, channels].
    """
    x = _pad(x, first, axes)
    for i, axis in reversed(list(enumerate(axes, first))):
        D = np.arange(len(axis.offsets)) * axis.dilation
        x = tf.gather(x, np.add.outer(np.arange(axis.space), D), axis=i)
    last = x.shape.rank - 2
    order = [*range(first, last, 2), *range(first + 1, last, 2)]
    return tf.transpose(x, [*range(first), *order, last, last + 1])


def _pad(x, first, axes):
    """Pads x with zeros for all D on axes of the space, from `first` on."""
    pads = [(0, 0)] * x.shape.rank
    for i, axis in enumerate(axes, first):
        D, d = axis.offsets, axis.dilation
        pads[i] = (-D[0] * d, D[-1] * d)
    return tf.pad(x, pads) if any(map(any, pads)) else x


def _everywhere(x, axes, groups):
    """Returns the sums over all q, in the least time."""
    channels = x.shape[-1]
    K = x.shape[-2] * channels // groups
    if 1 < groups == channels:
        return _by_channel(x, axes)
    if _has_frequencies(axes, K, groups):
        return _by_frequencies(x, axes, groups)
    return _by_convolution(x, axes, groups)


def _by_channel(x, axes):
    y, x = x, _pad(x, 1, axes)
    found = []
    for D in itertools.product(*(range(len(axis.offsets)) for axis in axes)):
        begins = [d * axis.dilation for d, axis in zip(D, axes)]
        at = [slice(o, o + axis.space) for o, axis in zip(begins, axes)]
        moved = x[(slice(None), *at)]
        product = moved[..., :, tf.newaxis, :] * y[..., tf.newaxis, :, :]
        found.append(tf.reduce_sum(product, axis=range(len(axes) + 1)))
    by_channel = tf.transpose(tf.stack(found), [0, 3, 1, 2])
    offsets = [len(axis.offsets) for axis in axes]
    return tf.reshape(by_channel, [*offsets, *by_channel.shape[1:]])


def _by_convolution(x, axes, groups):
    y, x = x, _pad(x, 1, axes)
    dilation = [axis.dilation for axis in axes]
    if max(dilation) > 1:  # The residues of the positions become examples.
        rest = [(0, -n % d) for n, d in zip(y.shape[1:], dilation)]
        y, x = (tf.space_to_batch(v, dilation, rest) for v in (y, x))
    offsets = [len(axis.offsets) for axis in axes]
    found = []
    for y_, x_ in zip(tf.split(y, groups, -1), tf.split(x, groups, -1)):
        K = y_.shape[-1] * y_.shape[-2]
        y_, x_ = (tf.reshape(v, [-1, *v.shape[1:-2], K]) for v in (y_, x_))
        found.append(_convolve(y_, x_, [*offsets, K, K]))
    return tf.stack(found, axis=len(axes))


def _convolve(y, x, shape):
    """Returns sum_q x[q + D] y[q]^T for all D >= 0, of this shape."""
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


def _by_frequencies(x, axes, groups):
    """By those of the discrete Fourier transform of the padded image.

    x is real: half of those of the first axis are enough. With Z + i Y the
    transform, X X^H is Z^T Z + Y^T Y + i (Q - Q^T), Q = Y^T Z.
    """
    *_, n, m, phases, channels = x.shape
    c, dtype = channels // groups, x.dtype
    K, M = phases * c, m + axes[1].reach
    bytes_of_row = 2 * M * groups * K**2 * dtype.size
    rows = _Transform(axes, max(1, _MOST_BYTES // bytes_of_row))
    x = tf.reshape(x, [-1, n, m, phases, groups, c])
    x = tf.reshape(tf.transpose(x, [1, 2, 4, 0, 3, 5]), [n, -1])
    to_real, to_imaginary = (tf.constant(v, dtype) for v in rows.second)

    def of_rows(first, cosines, sines):
        X = tf.reshape(tf.matmul(first, x), [rows.count, 2 * m, -1])
        shape = [rows.count * M, groups, -1, K]
        Z = tf.reshape(tf.matmul(to_real, X), shape)
        Y = tf.reshape(tf.matmul(to_imaginary, X), shape)
        P = tf.matmul(Z, Z, transpose_a=True)
        P += tf.matmul(Y, Y, transpose_a=True)
        Q = tf.matmul(Y, Z, transpose_a=True)
        P, Q = (tf.reshape(v, [rows.count * M, -1]) for v in (P, Q))
        return tf.matmul(cosines, P), tf.matmul(sines, Q)

    parts = [tf.constant(v, dtype) for v in rows.parts]
    if rows.steps == 1:
        even, odd = of_rows(*(v[0] for v in parts))
    else:

        def add(i, even, odd):
            more = of_rows(*(v[i] for v in parts))
            return i + 1, even + more[0], odd + more[1]

        offsets = math.prod(len(axis.offsets) for axis in axes)
        zeros = tf.zeros([offsets, groups * K**2], dtype)
        _, even, odd = tf.while_loop(
            lambda i, *_: i < rows.steps,
            add,
            (0, zeros, zeros),
            parallel_iterations=1,
            maximum_iterations=rows.steps,
        )
    shape = [*(len(axis.offsets) for axis in axes), groups, K, K]
    odd = tf.reshape(odd, shape)
    return tf.reshape(even, shape) + tf.linalg.matrix_transpose(odd) - odd


class _Transform:
    """The Fourier transform of an image, and back to offsets, as products.

    Args:
        axes: Two.
        most: How many frequencies of the first axis to take at a time.

    Attributes:
        count: How many it takes, the last ones zero.
        steps: How often.
        parts: For each step, what takes [n, ...] to [count * 2 (real,
            imaginary), ...], and [offsets, count * M] for products of
            frequencies: cosines and sines.
        second: What takes [2 m, ...] to the M real and imaginary parts.
    """

    def __init__(self, axes: Sequence[Axis], most: int):
        (n, N), (m, M) = [
            (axis.space, axis.space + axis.reach) for axis in axes
        ]
        F = N // 2 + 1
        self.steps = -(-F // most)
        self.count = -(-F // self.steps)
        rest = self.steps * self.count - F
        angle = _angles(F, n, N)
        first = np.stack([np.cos(angle), -np.sin(angle)], axis=1)
        first = np.pad(first, [(0, rest), (0, 0), (0, 0)])
        angle = _angles(M, m, M)
        cos, sin = np.cos(angle), np.sin(angle)
        self.second = np.hstack([cos, sin]), np.hstack([-sin, cos])
        own_conjugate = np.isin(np.arange(F), [0, N / 2])
        weight = np.where(own_conjugate, 1, 2) / (N * M)
        D = [np.array(axis.offsets) * axis.dilation for axis in axes]
        angle = np.add.outer(_angles(F, D[0], N), _angles(M, D[1], M))
        angle = np.transpose(angle, [1, 3, 0, 2])  # [D, D, F, M]
        back = []
        for f in np.cos(angle), np.sin(angle):
            f = f * weight[:, np.newaxis]
            f = np.pad(f, [(0, 0), (0, 0), (0, rest), (0, 0)])
            f = f.reshape(-1, self.steps, self.count * M)
            back.append(f.swapaxes(0, 1))
        self.parts = first.reshape(self.steps, 2 * self.count, n), *back


def _angles(frequencies, positions, period):
    """Returns 2 pi f q / period, [frequencies, positions]."""
    q = np.arange(positions) if np.ndim(positions) == 0 else positions
    return 2 * np.pi * np.outer(np.arange(frequencies), q) / period
