"""Phases of transposed convolutions, worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tfkfac.convolution import autocorrelation, patches
from tfkfac.convolution.patches import Window
from tfkfac.convolution.transposed import TransposedConvolution

RNG = np.random.default_rng(0)
X = tf.constant([[[1.0], [2], [3]]])  # Three positions.


def line(size, stride, padding, output_padding=None, dilation=1):
    more = None if output_padding is None else (output_padding,)
    return TransposedConvolution((size,), (stride,), (dilation,), padding, more)


def seen(convolution):
    """What each phase sees of X: by its taps, a row for each output."""
    found = []
    for window, taps in zip(convolution.windows, convolution.taps):
        rows = patches.extract(X, window)[:, :, 0].numpy()
        found.append((taps, rows.tolist()))
    return found


def test_a_line_with_stride_2():
    """Output 2 p + k sees input p through tap k: 7 outputs."""
    convolution = line(3, 2, "valid")
    assert convolution.outputs(0, 3) == 7
    even = [[0, 1], [1, 2], [2, 3], [3, 0]]
    odd = [[1], [2], [3]]
    assert seen(convolution) == [([2, 0], even), ([1], odd)]


def test_as_many_outputs_as_stride_times_inputs():
    convolution = line(3, 2, "same")
    assert convolution.outputs(0, 3) == 6
    even = [[0, 1], [1, 2], [2, 3]]
    odd = [[1], [2], [3]]
    assert seen(convolution) == [([2, 0], even), ([1], odd)]


def test_cropped_at_both_ends():
    """The first and the last of the seven outputs are gone."""
    convolution = line(3, 2, "same", output_padding=0)
    assert convolution.outputs(0, 3) == 5
    even = [[1, 2], [2, 3]]
    odd = [[1], [2], [3]]
    assert seen(convolution) == [([2, 0], even), ([1], odd)]


def test_inputs_that_no_output_sees():
    """Of outputs 3 p + k those from 1 to 7 are left."""
    convolution = line(3, 3, "same", output_padding=0)
    assert convolution.outputs(0, 3) == 7
    expected = [([0], [[2], [3]]), ([1], [[1], [2], [3]]), ([2], [[1], [2]])]
    assert seen(convolution) == expected


def test_stride_1_reverses_the_taps():
    convolution = line(2, 1, "valid", dilation=2)
    assert convolution.outputs(0, 3) == 5
    rows = [[0, 1], [0, 2], [1, 3], [2, 0], [3, 0]]
    assert seen(convolution) == [([1, 0], rows)]


def test_phases_beyond_the_kernel_have_no_taps():
    convolution = line(2, 4, "valid")
    assert convolution.outputs(0, 3) == 12
    rows = [[1], [2], [3]]
    assert seen(convolution) == [([0], rows), ([1], rows)]


@pytest.mark.parametrize("pads", [(1, 2), (-1, 1), (2, -1), (-2, -1)])
def test_windows_with_paddings_of_their_own(pads):
    """As without, of an image that has the zeros, or less of itself."""
    x = RNG.normal(size=(2, 7, 6, 3))
    window = Window((2, 3), (1, 1), (1, 1), (pads, (0, 1)))
    low, high = (max(p, 0) for p in pads)
    given = np.pad(x, [(0, 0), (low, high), (0, 1), (0, 0)])
    given = given[:, max(-pads[0], 0) : given.shape[1] + min(pads[1], 0)]
    valid = Window((2, 3), (1, 1), (1, 1), "valid")
    a = patches.extract(tf.constant(given), valid)
    np.testing.assert_array_equal(patches.extract(tf.constant(x), window), a)
    a = tf.reshape(a, [len(a), -1]).numpy()
    assert len(a) == 2 * window.outputs(0, 7) * window.outputs(1, 6)
    found = autocorrelation.second_moment(tf.constant(x), window, 1)
    np.testing.assert_allclose(found[0], a.T @ a, atol=1e-12)
    sums = patches.sums(tf.constant(x), window, 1)
    np.testing.assert_allclose(sums[0], a.sum(0), atol=1e-12)


def test_join():
    """Taps 2 and 0 see two channels each, tap 1 by itself; with a 1 last."""
    convolution = line(3, 2, "same")
    first, second = (RNG.normal(size=(1, n, n)) for n in (5, 3))
    second[0, -1, -1] = first[0, -1, -1]
    found = convolution.join([tf.constant(first), tf.constant(second)], 2)
    expected = np.zeros([7, 7])
    places = [4, 5, 0, 1, 6]
    expected[np.ix_(places, places)] = first[0]
    places = [2, 3, 6]
    expected[np.ix_(places[:2], places)] = second[0, :2]
    expected[6, :6] = expected[:6, 6]
    np.testing.assert_array_equal(found[0], expected)
    diagonals = [tf.constant(np.diagonal(v[0])[None]) for v in (first, second)]
    np.testing.assert_array_equal(
        convolution.join(diagonals, 2)[0], np.diagonal(expected)
    )
