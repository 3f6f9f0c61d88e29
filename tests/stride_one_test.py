"""Strides that become channels, worked out by hand."""

import numpy as np
import tensorflow as tf

from tfkfac.convolution.axis import Axis
from tfkfac.convolution.patches import Window
from tfkfac.convolution.stride_one import StrideOneConvolution

RNG = np.random.default_rng(0)


def line(n, size, strides, padding):
    window = Window((size,), (strides,), (1,), padding)
    convolution = StrideOneConvolution((n,), window)
    x = tf.reshape(tf.range(1.0, n + 1), [1, n, 1])
    return convolution, convolution.with_phases(x)[0, :, :, 0]


def test_phases_of_a_padded_line():
    """Positions 1 to 7 with a zero before, and as many behind as are seen."""
    convolution, found = line(7, 3, 2, "same")
    assert convolution.axes == [Axis(2, 1, 5, 4, 0, half=True)]
    expected = [[0, 1], [2, 3], [4, 5], [6, 7], [0, 0]]
    np.testing.assert_array_equal(found, expected)


def test_what_no_kernel_sees_is_left_out():
    convolution, found = line(8, 3, 3, "valid")
    assert convolution.axes == [Axis(1, 1, 2, 2, 0, half=True)]
    np.testing.assert_array_equal(found, [[1, 2, 3], [4, 5, 6]])


def test_stride_one_is_left_alone():
    convolution, found = line(4, 3, 1, "same")
    assert convolution.phases == 1
    assert convolution.axes == [Axis(3, 1, 4, 4, 1, half=True)]
    np.testing.assert_array_equal(found, [[1], [2], [3], [4]])


def test_kernel_order():
    """A 3 x 2 kernel with strides 2 and 1: phases of rows come last.

    Offset (a, b) is at place (a // 2, b) of 2 x 2 and in phase a % 2; the
    places of row 3 are not in the kernel.
    """
    window = Window((3, 2), (2, 1), (1, 1), "same")
    convolution = StrideOneConvolution((6, 5), window)
    units = [0, 2, 1, 3, 4, 6]
    A = RNG.normal(size=(1, 2 * 8, 2 * 8))
    found = convolution.in_kernel_order(tf.constant(A))
    sides = [2 * unit + c for unit in units for c in range(2)]
    np.testing.assert_array_equal(found[0], A[0][np.ix_(sides, sides)])
