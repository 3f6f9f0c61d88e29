"""Sums over all positions and over borders, by each method, against loops."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from patch_loops import RNG, products

from tfkfac.convolution.axis import Axis
from tfkfac.convolution.correlation import correlations
from tfkfac.convolution.method import Method


def axes_of(padding, space):
    low = {"same": 1, "valid": 0}[padding]
    return [
        Axis(3, 1, n, n - 2 + 2 * low, low, half=i == 0)
        for i, n in enumerate(space)
    ]


def by_loops(x, axes, groups):
    """Returns all sums as `correlations` does, each by loops."""
    terms = [
        [(None, D) for D in axis.offsets] + list(axis.borders) for axis in axes
    ]
    found = []
    for term in itertools.product(*terms):
        # At a border one position q alone is left of the other factor.
        D = [d * axis.dilation for (_, d), axis in zip(term, axes)]
        y = x.copy()
        for i, (q, _) in enumerate(term):
            if q is not None:
                others = [j for j in range(x.shape[i + 1]) if j != q]
                index = [slice(None)] * x.ndim
                index[i + 1] = others
                y[tuple(index)] = 0
        found.append(cross(x, y, D, groups))
    shape = [len(of_axis) for of_axis in terms]
    return np.reshape(found, [*shape, *found[0].shape])


def cross(x, y, D, groups):
    """Returns sum_q x[q + D] y[q]^T: of both as channels of one image."""
    both = np.concatenate([x, y], axis=-2)  # As if they were phases.
    K = x.shape[-2] * x.shape[-1] // groups
    return products(both, D, groups)[:, :K, K:]


METHODS = [
    ("channels", 1, 3, 3),
    ("channels", 2, 3, 3),
    ("convolution", 1, 2, 1),
    ("convolution", 2, 4, 2),
    ("convolution", 1, 3, 3),
    ("frequencies", 1, 2, 1),
    ("frequencies", 2, 4, 2),
]
methods = pytest.mark.parametrize("name, phases, channels, groups", METHODS)


@methods
def test_all_sums_without_padding(name, phases, channels, groups):
    x = RNG.normal(size=(2, 5, 6, phases, channels))
    axes = axes_of("valid", (5, 6))
    found = correlations(tf.constant(x), axes, groups, Method(name))
    expected = by_loops(x, axes, groups)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@methods
def test_all_sums_with_padding(name, phases, channels, groups):
    """At the borders of the rows D stands for -D, which has zero, too.

    E(D) and E(-D)^T are the same there; their sum is what counts.
    """
    x = RNG.normal(size=(2, 5, 6, phases, channels))
    axes = axes_of("same", (5, 6))
    found = correlations(tf.constant(x), axes, groups, Method(name)).numpy()
    expected = by_loops(x, axes, groups)
    D, columns = 3, 5
    np.testing.assert_allclose(found[:D], expected[:D], atol=1e-12)
    np.testing.assert_allclose(
        found[D:, columns:], expected[D:, columns:], atol=1e-12
    )
    found, expected = (
        E + E[:, ::-1].swapaxes(-1, -2)
        for E in (found[D:, :columns], expected[D:, :columns])
    )
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("name, groups", [("convolution", 1), ("channels", 2)])
@pytest.mark.parametrize("space", [(7,), (4, 3, 4)])
def test_lines_and_volumes(name, groups, space):
    x = RNG.normal(size=(2, *space, 1, 2))
    axes = axes_of("valid", space)
    found = correlations(tf.constant(x), axes, groups, Method(name))
    expected = by_loops(x, axes, groups)
    np.testing.assert_allclose(found, expected, atol=1e-12)
