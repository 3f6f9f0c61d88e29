"""Patches and products of an image, by loops in NumPy over their elements."""

import itertools

import numpy as np
import tensorflow as tf

from tfkfac.convolution import autocorrelation, patches

RNG = np.random.default_rng(0)


def loops(x, window):
    """All patches, [rows, size * channels], by loops over their elements."""
    n = len(window.size)
    pads = [window.pads(i, x.shape[i + 1]) for i in range(n)]
    counts = [window.outputs(i, x.shape[i + 1]) for i in range(n)]
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    rows = []
    for p in itertools.product(*map(range, counts)):
        row = []
        for o in itertools.product(*map(range, window.size)):
            at = [a * s + b * d for a, s, b, d in
                  zip(p, window.strides, o, window.dilation)]  # fmt: skip
            row.append(x[(slice(None), *at)])
        rows.append(np.stack(row, axis=1))
    return np.concatenate(rows)


def by_group(found, groups):
    rows, k, channels = found.shape
    split = found.reshape(rows, k, groups, channels // groups)
    return split.transpose(2, 0, 1, 3).reshape(groups, rows, -1)


def compare(space, window, channels=4, groups=1):
    x = RNG.normal(size=(3, *space, channels))
    a = by_group(loops(x, window), groups)
    expected = a.swapaxes(1, 2) @ a
    found = autocorrelation.second_moment(tf.constant(x), window, groups)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-12 * largest, rtol=0)
    sums = patches.sums(tf.constant(x), window, groups)
    np.testing.assert_allclose(sums, a.sum(1), atol=1e-12 * len(a[0]))
    p = patches.group_rows(patches.extract(tf.constant(x), window), groups)
    np.testing.assert_allclose(
        tf.matmul(p, p, transpose_a=True), expected, atol=1e-12 * largest
    )


STEPS = {  # Strides and dilation.
    "plain": ((1, 1), (1, 1)),
    "strided": ((2, 2), (1, 1)),
    "strided 3 by 1": ((3, 1), (1, 1)),
    "dilated": ((1, 1), (2, 1)),
    "dilated 2 by 3": ((1, 1), (2, 3)),
}


def products(x, D, groups):
    """Returns sum_q x[q + D] x[q]^T, [groups, K, K], by loops over q.

    Args:
        x: [batch, *space, phases, channels].
        D: For each axis of the space, in positions.
        groups: Of the channels; K is (phase, channel of the group).
    """
    *sides, phases, channels = x.shape[1:]
    split = x.reshape(-1, *sides, phases, groups, channels // groups)
    K = phases * channels // groups
    total = np.zeros([groups, K, K])
    for q in itertools.product(*map(range, sides)):
        there = tuple(a + b for a, b in zip(q, D))
        if all(0 <= a < n for a, n in zip(there, sides)):
            for g in range(groups):
                one, other = (
                    split[(slice(None), *at)][:, :, g].reshape(-1, K)
                    for at in (there, q)
                )
                total[g] += one.T @ other
    return total
