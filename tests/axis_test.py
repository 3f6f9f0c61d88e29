"""A kernel on one axis of an image, worked out by hand."""

import numpy as np
import pytest

from tfkfac.convolution.axis import Axis


def test_offsets():
    assert list(Axis(3, 1, 9, 9, 1, half=True).offsets) == [0, 1, 2]
    assert list(Axis(3, 2, 9, 9, 2, half=False).offsets) == [-2, -1, 0, 1, 2]
    assert Axis(3, 2, 9, 9, 2, half=False).reach == 4


@pytest.mark.parametrize("half", [True, False])
def test_borders_with_padding(half):
    """Offset 0 does not see the last position, nor offset 2 the first one."""
    assert Axis(3, 1, 10, 10, 1, half).borders == [(0, 0), (9, 0)]


def test_borders_without_padding():
    """Boxes are 0 to 2, 1 to 3 and 2 to 4 of five positions."""
    expected = [(0, 0), (0, 1), (1, 0), (3, 0), (3, 1), (4, 0)]
    assert Axis(3, 1, 5, 3, 0, half=True).borders == expected


def test_no_borders_of_a_kernel_of_one():
    assert Axis(1, 1, 5, 5, 0, half=True).borders == []


def test_weights_of_half():
    """Of D = 0, 1, 2 and the first and last position; the diagonal is half."""
    expected = np.zeros([3, 3, 5])
    expected[1, 0] = expected[2, 1] = [0, 1, 0, 0, 0]
    expected[2, 0] = [0, 0, 1, 0, 0]
    expected[0, 0] = [0.5, 0, 0, 0, -0.5]
    expected[1, 1] = [0.5, 0, 0, 0, 0]
    expected[2, 2] = [0.5, 0, 0, -0.5, 0]
    found = Axis(3, 1, 10, 10, 1, half=True).weights()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dilation, outputs, low", [(1, 3, 0), (2, 5, 2)])
def test_weights_give_the_sums_of_boxes(dilation, outputs, low):
    """sum_p x[p + o'] x[p + o] of each pair, of x[q] = 2^q, zero outside."""
    n, k = 5, 3

    def x(q):
        return 2.0**q if 0 <= q < n else 0.0

    axis = Axis(k, dilation, n, outputs, low, half=False)
    at = [(q, D) for D in axis.offsets for q in range(n)]
    every = {D: sum(x(q + D * dilation) * x(q) for q, d in at if d == D)
             for D in axis.offsets}  # fmt: skip
    border = [x(q + D * dilation) * x(q) for q, D in axis.borders]
    found = axis.weights() @ np.array([*every.values(), *border])
    begins = [o * dilation - low for o in range(k)]
    expected = [
        [sum(x(p + other) * x(p + o) for p in range(outputs)) for o in begins]
        for other in begins
    ]
    np.testing.assert_allclose(found, expected)


def test_the_box_with_the_fewest_positions():
    """Of 10 positions offset 0 or 2 does not see one; of 5 each sees 3."""
    assert Axis(3, 1, 10, 10, 1, half=True).least == 9
    assert Axis(3, 1, 5, 3, 0, half=True).least == 3
    assert Axis(3, 4, 3, 3, 4, half=True).least == 0
