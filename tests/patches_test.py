"""Patches, in groups and summed, worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf
from patch_loops import RNG, STEPS, loops

from tfkfac.convolution import patches
from tfkfac.convolution.patches import Window

LINE = Window((2,), (1,), (1,), "same")
X = tf.constant([[[1.0, 2], [3, 4], [5, 6]]])  # Three positions.


def test_patches_of_a_line():
    found = patches.extract(X, LINE)
    expected = [[[1, 2], [3, 4]], [[3, 4], [5, 6]], [[5, 6], [0, 0]]]
    np.testing.assert_array_equal(found, expected)


def test_groups_of_a_line():
    found = patches.group_rows(patches.extract(X, LINE), 2)
    expected = [[[1, 3], [3, 5], [5, 0]], [[2, 4], [4, 6], [6, 0]]]
    np.testing.assert_array_equal(found, expected)


def test_sums_of_a_line():
    np.testing.assert_array_equal(patches.sums(X, LINE, 1), [[9, 12, 8, 10]])
    np.testing.assert_array_equal(patches.sums(X, LINE, 2), [[9, 8], [12, 10]])


@pytest.mark.parametrize(
    "window, outputs, pads",
    [
        (Window((3,), (1,), (1,), "valid"), 5, (0, 0)),
        (Window((3,), (1,), (1,), "same"), 7, (1, 1)),
        (Window((4,), (1,), (1,), "same"), 7, (1, 2)),
        (Window((3,), (2,), (1,), "same"), 4, (1, 1)),
        (Window((3,), (2,), (2,), "valid"), 2, (0, 0)),
        (Window((3,), (1,), (2,), "causal"), 7, (4, 0)),
        (Window((2,), (4,), (1,), "same"), 2, (0, 0)),
    ],
)
def test_outputs_and_pads_of_seven_positions(window, outputs, pads):
    assert (window.outputs(0, 7), window.pads(0, 7)) == (outputs, pads)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_patches_of_planes(padding, steps):
    """Against loops, where the size is not known before the step, too."""
    window = Window((2, 3), *STEPS[steps], padding)
    x = RNG.normal(size=(2, 7, 8, 3))
    unknown = tf.function(
        lambda x: patches.extract(x, window),
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.float64)],
    )
    for found in patches.extract(tf.constant(x), window), unknown(x):
        rows = loops(x, window).reshape(-1, 2, 6, 3).swapaxes(0, 1)
        np.testing.assert_array_equal(found, rows.reshape(-1, 6, 3))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_second_moment_without_known_sides(padding, steps, jit_compile):
    window = Window((2, 3), *STEPS[steps], padding)
    x = RNG.normal(size=(2, 7, 8, 4))
    found = tf.function(
        lambda x: patches.second_moment(x, window, 2),
        input_signature=[tf.TensorSpec([None] * 4, tf.float64)],
        jit_compile=jit_compile,
    )(x)
    rows = loops(x, window).reshape(-1, 6, 2, 2)
    rows = rows.transpose(2, 0, 1, 3).reshape(2, -1, 12)
    expected = rows.swapaxes(1, 2) @ rows
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_second_moment_of_zeros_around_and_inputs_left_out():
    """Two zeros before; the last of three positions is left out."""
    window = Window((2,), (1,), (1,), ((2, -1),))
    rows = np.array([[0, 0, 0, 0], [0, 0, 1, 2], [1, 2, 3, 4]])
    found = patches.second_moment(X, window, 1)
    np.testing.assert_array_equal(found[0], rows.T @ rows)
