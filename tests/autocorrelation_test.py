"""Second moments of patches by the input's autocorrelation, against loops."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from patch_loops import RNG, STEPS, compare

from tfkfac.convolution import autocorrelation, method
from tfkfac.convolution.patches import Window


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_two_dimensions(padding, steps):
    strides, dilation = STEPS[steps]
    for size in itertools.product((1, 2, 3, 5), (1, 3, 4)):
        window = Window(size, strides, dilation, padding)
        for space in (7, 9), (10, 8):
            fits = all(window.extent(i) <= n for i, n in enumerate(space))
            if padding == "same" or fits:
                compare(space, window, channels=2)


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("steps", ["plain", "strided", "dilated"])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_groups_and_single_channels(padding, steps, groups):
    compare((8, 7), Window((3, 3), *STEPS[steps], padding), groups=groups)


@pytest.mark.parametrize("step", [(1, 1), (2, 1), (3, 1), (1, 2), (1, 4)])
@pytest.mark.parametrize("padding", ["same", "valid", "causal"])
def test_one_dimension(padding, step):
    strides, dilation = ((number,) for number in step)
    for size in (2, 3):
        for groups in (1, 2, 4):
            window = Window((size,), strides, dilation, padding)
            compare((11,), window, groups=groups)


@pytest.mark.parametrize("step", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_three_dimensions(padding, step):
    strides, dilation = ((number,) * 3 for number in step)
    for groups in (1, 2):
        window = Window((3, 2, 3), strides, dilation, padding)
        compare((6, 5, 7), window, channels=2, groups=groups)


@pytest.mark.parametrize("batch", [None, 6, 7])
def test_parts_of_a_batch(monkeypatch, batch):
    """In parts, also with a rest or for no known number of examples."""
    x = RNG.normal(size=(batch or 7, 5, 4, 2))
    window = Window((3, 3), (1, 1), (1, 1), "same")
    expected = autocorrelation.second_moment(tf.constant(x), window, 1)
    monkeypatch.setattr(method, "_PART", 2 * 5 * 4 * 2 * 8)
    rows = []
    of_part = autocorrelation._of_part

    def count(part, *args):
        rows.append(part.shape[0])
        return of_part(part, *args)

    monkeypatch.setattr(autocorrelation, "_of_part", count)
    second_moment = tf.function(
        lambda x: autocorrelation.second_moment(x, window, 1),
        input_signature=[tf.TensorSpec([batch, *x.shape[1:]], tf.float64)],
        jit_compile=batch is not None,
    )
    np.testing.assert_allclose(second_moment(x), expected, 1e-12, 1e-12)
    assert rows == {None: [None], 6: [2], 7: [2, 1]}[batch]
    if batch is None:  # No examples.
        none = second_moment(x[:0])
        np.testing.assert_array_equal(none, tf.zeros_like(expected))
