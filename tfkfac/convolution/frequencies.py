"""Products of an image's channels some way apart, by Fourier transforms.

With X the discrete Fourier transform of an image x that is padded with zeros so
that no offset D wraps around, over N x M positions,

    sum_q x[q + D] x[q]^T = sum_f exp(2 pi i f D) X(f) X(f)^H / (N M)

and half of the frequencies are enough for a real x. The transforms, both ways,
are products with matrices of cosines and sines. Images here are
[batch, n, m, phases, channels], K the channels of a group in all phases.
"""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfkfac.convolution.axis import Axis

_MOST_BYTES = 2**23  # Of the products of frequencies at a time.


def multiplications(
    axes: Sequence[Axis], channels: int, groups: int, examples: int
) -> float:
    """Returns those for an example: about 3 n^2 K^2 / 2 + 3 n^3 K.

    The way back, n^2 K^2 for each offset, is that of a number of examples.

    Args:
        axes: Two.
        channels: K.
        groups: Of channels that are not multiplied with each other.
        examples: How many are taken at a time.
    """
    rows, columns = axes
    F, M = _period(rows) // 2 + 1, _period(columns)
    first = 2 * F * rows.space * columns.space * groups * channels
    second = 4 * F * M * columns.space * groups * channels
    products = 3 * F * M * groups * channels**2
    offsets = len(rows.offsets) * len(columns.offsets)
    back = 2 * offsets * F * M * groups * channels**2
    return first + second + products + back / examples


def correlations(x: tf.Tensor, axes: Sequence[Axis], groups: int) -> tf.Tensor:
    """Returns sum_q x[q + D] x[q]^T for all offsets D.

    Some rows of frequencies are taken at a time, so that their products take
    8 MiB, or those of one row.

    Args:
        x: [batch, n, m, phases, channels], float32 or float64.
        axes: Of n and m.
        groups: Channels of different groups are not multiplied.

    Returns:
        [offsets, offsets, groups, K, K].
    """
    *_, n, m, phases, channels = x.shape
    c = channels // groups
    K, M, dtype = phases * c, _period(axes[1]), x.dtype
    most = _MOST_BYTES // (2 * M * groups * K**2 * dtype.size)
    transform = _Transform(axes, max(1, most))
    x = tf.reshape(x, [-1, n, m, phases, groups, c])
    x = tf.reshape(tf.transpose(x, [1, 2, 4, 0, 3, 5]), [n, -1])
    parts = [tf.constant(v, dtype) for v in transform.parts]
    second = [tf.constant(v, dtype) for v in transform.second]

    def of_rows(i):
        first, *back = (v[i] for v in parts)
        X = tf.reshape(tf.matmul(first, x), [transform.count, 2 * m, -1])
        shape = [transform.count * M, groups, -1, K]
        return _products(*(tf.reshape(v @ X, shape) for v in second), *back)

    def add(i, even, odd):
        more = of_rows(i)
        return i + 1, even + more[0], odd + more[1]

    offsets = [len(axis.offsets) for axis in axes]
    if transform.steps == 1:
        even, odd = of_rows(0)
    else:
        zeros = tf.zeros([math.prod(offsets), groups * K**2], dtype)
        _, even, odd = tf.while_loop(
            lambda i, *_: i < transform.steps,
            add,
            (0, zeros, zeros),
            parallel_iterations=1,
            maximum_iterations=transform.steps,
        )
    even, odd = (tf.reshape(v, [*offsets, groups, K, K]) for v in (even, odd))
    return even + tf.linalg.matrix_transpose(odd) - odd


def _products(Z, Y, cosines, sines):
    """Returns sum_f of cosines P and of sines Q, flat.

    For the transform Z + i Y, X X^H is P + i (Q - Q^T) with P = Z^T Z + Y^T Y
    and Q = Y^T Z.
    """
    P = tf.matmul(Z, Z, transpose_a=True) + tf.matmul(Y, Y, transpose_a=True)
    Q = tf.matmul(Y, Z, transpose_a=True)
    flat = [cosines.shape[1], -1]
    return cosines @ tf.reshape(P, flat), sines @ tf.reshape(Q, flat)


def _period(axis):
    """Returns N: that of the image with room for all D."""
    return axis.space + axis.reach


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
        (n, N), (m, M) = [(axis.space, _period(axis)) for axis in axes]
        F = N // 2 + 1
        self.steps = -(-F // most)
        self.count = -(-F // self.steps)
        rest = self.steps * self.count - F
        angle = _angles(F, np.arange(n), N)
        first = np.stack([np.cos(angle), -np.sin(angle)], axis=1)
        first = np.pad(first, [(0, rest), (0, 0), (0, 0)])
        angle = _angles(M, np.arange(m), M)
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
    return 2 * np.pi * np.outer(np.arange(frequencies), positions) / period
