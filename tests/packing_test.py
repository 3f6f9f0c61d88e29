"""Tensors as one vector, there and back."""

import numpy as np
import pytest
import tensorflow as tf

from tfkfac.blocks import Moment
from tfkfac.distributed import packing


def symmetric(rng, groups, dim, scale=1.0):
    x = rng.normal(size=(groups, dim, dim)) * scale
    return x + x.swapaxes(1, 2)


def moments(dtype, scale=1.0):
    rng = np.random.default_rng(0)
    values = [symmetric(rng, 2, 5, scale), rng.uniform(size=(1, 7)) * scale,
              symmetric(rng, 1, 1, scale)]  # fmt: skip
    return [
        Moment(tf.constant(value, dtype), tf.constant(rows, dtype))
        for value, rows in zip(values, (3, 1000, 7))
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moments_there_and_back(dtype):
    """Upper triangles alone: n (n + 1) / 2 elements of each factor."""
    given = moments(dtype)
    flat = packing.flatten_moments(given, tf.constant(12.0, dtype))
    assert flat.shape == [1 + 3 + 2 * 15 + 7 + 1] and flat.dtype == dtype
    found, count = packing.unflatten_moments(flat, given)
    assert float(count) == 12
    for a, b in zip(found, given):
        np.testing.assert_array_equal(a.total, b.total)
        assert float(a.rows) == float(b.rows)


def test_nothing():
    flat = packing.flatten_moments([], tf.constant(3.0))
    assert packing.unflatten_moments(flat, [])[0] == []
    assert packing.unflatten(tf.zeros([0]), []) == []


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_float16_neither_overflows_nor_vanishes(scale):
    """Summed over two ranks, to the precision of float16; N, R exactly."""
    given = moments("float32", scale)
    given[2].total *= 0  # A moment of zeros.
    count = tf.constant(70_001.0)  # Beyond the largest float16.
    sent = packing.flatten_half(given, count)
    assert sent.dtype == tf.float16
    total = packing.sum_half(tf.stack([sent, sent]), given)
    found, doubled = packing.unflatten_moments(total, given)
    assert float(doubled) == 2 * 70_001
    for a, b in zip(found, given):
        expected = 2 * b.total.numpy()
        np.testing.assert_allclose(
            a.total, expected, atol=1e-3 * np.abs(expected).max()
        )
        assert float(a.rows) == 2 * float(b.rows)
