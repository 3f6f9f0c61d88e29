"""Products of an image some way apart by frequencies, against loops."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from patch_loops import RNG, STEPS, compare, loops, products

from tfkfac.convolution import autocorrelation, frequencies, method
from tfkfac.convolution.axis import Axis
from tfkfac.convolution.patches import Window


@pytest.mark.parametrize("most", [2**30, 1, 800])
def test_by_frequencies(monkeypatch, most):
    """All at once, one row of frequencies at a time, or several."""
    monkeypatch.setattr(method, "_COST_OF_FREQUENCIES", 0)
    monkeypatch.setattr(frequencies, "_MOST_BYTES", most)
    for padding, steps in itertools.product(("same", "valid"), STEPS.values()):
        for size, groups in ((3, 3), 1), ((4, 2), 2), ((1, 5), 1), ((2, 1), 2):
            compare((11, 14), Window(size, *steps, padding), 4, groups)


def test_by_frequencies_in_float32(monkeypatch):
    """As exact as the sum of products that it is of the largest element."""
    x = RNG.normal(size=(8, 7, 7, 64)) + 1
    window = Window((3, 3), (1, 1), (1, 1), "same")
    monkeypatch.setattr(method, "_COST_OF_FREQUENCIES", 0)
    found = autocorrelation.second_moment(tf.constant(x, tf.float32), window, 1)
    a = loops(x, window).reshape(-1, 9 * 64)
    expected = a.T @ a
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found[0], expected, atol=1e-6 * largest, rtol=0)


@pytest.mark.parametrize("phases, channels, groups", [(1, 3, 1), (2, 4, 2)])
def test_each_offset(phases, channels, groups):
    """Half of the plane; dilated on the second axis."""
    x = RNG.normal(size=(2, 5, 6, phases, channels))
    rows = Axis(3, 1, 5, outputs=5, low=1, half=True)
    columns = Axis(2, 2, 6, outputs=6, low=1, half=False)
    found = frequencies.correlations(tf.constant(x), [rows, columns], groups)
    assert found.shape[:2] == (3, 3)
    for i, j in itertools.product(range(3), repeat=2):
        expected = products(x, (i, 2 * (j - 1)), groups)
        np.testing.assert_allclose(found[i, j], expected, atol=1e-12)
