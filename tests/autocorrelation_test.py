"""Second moments of patches by the input's autocorrelation, against loops."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from patch_loops import RNG, STEPS, compare

from tfkfac.convolution import autocorrelation, method, patches
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


def window(size, strides=1, dilation=1, padding="same"):
    rank = len(size)
    return Window(size, (strides,) * rank, (dilation,) * rank, padding)


# The space, channels, groups, window, and the method that is chosen.
KINDS = [
    ((8, 8), 64, 1, window((3, 3)), "frequencies"),
    ((8, 8), 8, 1, window((3, 3)), "convolution"),
    ((8, 8), 8, 1, window((5, 5)), "frequencies"),
    ((9, 9), 8, 1, window((3, 3), padding="valid"), "convolution"),
    ((8, 8), 4, 1, window((3, 3), strides=2), "convolution"),
    ((9, 9), 8, 1, window((3, 3), dilation=2), "convolution"),
    ((8, 8), 8, 2, window((3, 3)), "convolution"),
    ((8, 8), 4, 4, window((3, 3)), "channels"),
    ((12,), 8, 1, window((5,), padding="causal"), "convolution"),
    ((5, 6, 5), 3, 1, window((3, 3, 3)), "convolution"),
    # A phase of a transposed convolution.
    ((8, 8), 8, 1, window((2, 2), padding=((1, 0), (0, -1))), "convolution"),
]
BRIGHT = {"first corner": (0, 0), "last corner": (-1, -1), "border": (0, 0.5),
          "inside": (0.5, 0.5), "everywhere": None}  # fmt: skip


@pytest.mark.parametrize("bright", BRIGHT)
@pytest.mark.parametrize("space, channels, groups, window, name", KINDS)
def test_each_element_by_its_own_scale(
    space, channels, groups, window, name, bright
):
    """In float32 with a pixel of 1e4, or with 1,000 added to all.

    Elements are divided by sqrt(A_ii A_jj), which rounding is relative to.
    """
    chosen = method.choose(space, channels, groups, window, gpu=False)
    assert chosen.name == name
    x = RNG.normal(size=(4, *space, channels))
    if BRIGHT[bright] is None:
        x += 1000
    else:
        row, others = BRIGHT[bright]
        at = [row, *[others] * (len(space) - 1)]
        place = [int(a * n) if a > 0 else a for a, n in zip(at, space)]
        x[(0, *place, 0)] = 1e4
    x = x.astype(np.float32)
    found = autocorrelation.second_moment(tf.constant(x), window, groups)
    expected = patches.second_moment(tf.cast(x, tf.float64), window, groups)
    scale = np.sqrt(tf.linalg.diag_part(expected))
    found, expected = (
        A / scale[:, np.newaxis] / scale[:, :, np.newaxis]
        for A in (np.float64(found), expected.numpy())
    )
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    smallest = np.linalg.eigvalsh(expected)[:, 0]
    assert np.all(np.linalg.eigvalsh(found)[:, 0] > smallest - 4e-5)


def test_patches_are_built_where_they_must(monkeypatch):
    """In graphs and compiled: only for the bright corner."""
    of = window((3, 3))
    x = RNG.normal(size=(4, 8, 8, 8)).astype(np.float32)
    usual = autocorrelation.second_moment(tf.constant(x), of, 1)
    monkeypatch.setattr(
        patches, "second_moment", lambda x, *_: tf.zeros([1, 72, 72])
    )
    autocorrelation._unless_rounded.cache_clear()
    for jit_compile in False, True:
        second_moment = tf.function(
            lambda x: autocorrelation.second_moment(x, of, 1),
            jit_compile=jit_compile,
        )
        np.testing.assert_allclose(second_moment(x), usual, rtol=0, atol=1e-3)
        bright = x.copy()
        bright[0, 0, 0, 0] = 1e4
        assert not np.any(second_moment(bright))
    autocorrelation._unless_rounded.cache_clear()
