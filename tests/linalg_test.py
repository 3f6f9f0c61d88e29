"""Functions of symmetric matrices."""

import numpy as np
import pytest

from tfkfac import linalg


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9, 17])
def test_packing(n):
    rng = np.random.default_rng(n)
    matrix = rng.normal(size=(2, n, n))
    matrix += matrix.transpose(0, 2, 1)
    packed = linalg.pack_symmetric(matrix).numpy()
    assert packed.shape == (2, n * (n + 1) // 2)
    expected = matrix[0][np.triu_indices(n)]
    np.testing.assert_array_equal(np.sort(packed[0]), np.sort(expected))
    found = linalg.unpack_symmetric(packed, n).numpy()
    np.testing.assert_array_equal(found, matrix)


def test_packing_keeps_what_is_not_finite_in_its_place():
    matrix = np.ones((1, 4, 4), "float32")
    matrix[0, 1, 2] = matrix[0, 2, 1] = np.nan
    matrix[0, 3, 3] = np.inf
    packed = linalg.pack_symmetric(matrix)
    found = linalg.unpack_symmetric(packed, 4).numpy()
    np.testing.assert_array_equal(found, matrix)
