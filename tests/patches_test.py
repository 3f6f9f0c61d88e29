"""Second moments of patches, with and without building them."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkfac.convolution import (
    autocorrelation,
    correlation,
    frequencies,
    patches,
)
from tfkfac.convolution.patches import Window
from tfkfac.planning import flops

RNG = np.random.default_rng(0)


def loops(x, window):
    """All patches, [rows, size * channels], by loops over their elements."""
    n = len(window.size)
    pads = [window.pads(i, x.shape[i + 1]) for i in range(n)]
    counts = [window.outputs(i, x.shape[i + 1]) for i in range(n)]
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    rows = []
    for p in itertools.product(*map(range, counts)):
        row = []
        for o in itertools.product(*map(range, window.size)):
            at = [a * s + b * d for a, s, b, d in
                  zip(p, window.strides, o, window.dilation)]  # fmt: skip
            row.append(x[(slice(None), *at)])
        rows.append(np.stack(row, axis=1))
    return np.concatenate(rows)


def by_group(found, groups):
    rows, k, channels = found.shape
    split = found.reshape(rows, k, groups, channels // groups)
    return split.transpose(2, 0, 1, 3).reshape(groups, rows, -1)


def compare(space, window, channels=4, groups=1):
    x = RNG.normal(size=(3, *space, channels))
    a = by_group(loops(x, window), groups)
    expected = a.swapaxes(1, 2) @ a
    found = autocorrelation.second_moment(tf.constant(x), window, groups)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-12 * largest, rtol=0)
    sums = patches.sums(tf.constant(x), window, groups)
    np.testing.assert_allclose(sums, a.sum(1), atol=1e-12 * len(a[0]))
    p = patches.group_rows(patches.extract(tf.constant(x), window), groups)
    np.testing.assert_allclose(
        tf.matmul(p, p, transpose_a=True), expected, atol=1e-12 * largest
    )


STEPS = {  # Strides and dilation.
    "plain": ((1, 1), (1, 1)),
    "strided": ((2, 2), (1, 1)),
    "strided 3 by 1": ((3, 1), (1, 1)),
    "dilated": ((1, 1), (2, 1)),
    "dilated 2 by 3": ((1, 1), (2, 3)),
}


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


def test_which_is_chosen():
    def chosen(space, size, channels=16, groups=1, **options):
        ones = (1,) * len(size)
        window = {"strides": ones, "dilation": ones, "padding": "same"}
        window = Window(size, **(window | options))
        return autocorrelation.is_cheaper(space, channels, groups, window)

    assert chosen((32, 32), (3, 3))
    assert chosen((224, 224), (7, 7), 3, strides=(2, 2))
    assert chosen((32, 32), (3, 3), strides=(2, 2))
    assert not chosen((28, 28), (3, 3), 128, strides=(2, 2))
    assert not chosen((56, 56), (3, 3), 128, strides=(2, 2))
    assert chosen((32, 32), (3, 3), 16, 16)
    assert chosen((40,), (31,)) and not chosen((40,), (33,))
    assert not chosen((32, 32), (1, 1))
    assert not chosen((None, 32), (3, 3))
    assert not chosen((1, 5), (4, 3), dilation=(2, 1))
    assert not chosen((32, 32), (3, 3), 64, 32)  # Many groups of 2.


def flops_of_an_example(space, channels, window):
    """Counted in the graph, without what a batch takes once."""

    def of_batch(n):
        @tf.function
        def run():
            x = tf.ones([n, *space, channels])
            return autocorrelation.second_moment(x, window, 1)

        operations = run.get_concrete_function().graph.get_operations()
        multiplied, left_out = flops.count(operations)
        assert not left_out
        return multiplied

    return of_batch(30) - of_batch(29)


def test_multiplications():
    """Fewer than with patches by what is promised."""
    n, C, k = 16, 8, 3
    window = Window((k, k), (1, 1), (1, 1), "same")
    total = flops_of_an_example((n, n), C, window) / 2
    problem = autocorrelation._Problem((n, n), window)
    assert 0.98 * problem.cost(C, 1) < total <= problem.cost(C, 1)
    assert n**2 * k * (2 * k - 1) * C**2 < total
    assert total < n**2 * k * (2 * k - 1) * C**2 + n * k**3 * C**2
    assert n**2 * k**4 * C**2 / total > 4


def test_multiplications_by_frequencies():
    n, C, k = 15, 128, 3
    window = Window((k, k), (1, 1), (1, 1), "same")
    total = flops_of_an_example((n, n), C, window) / 2
    problem = autocorrelation._Problem((n, n), window)
    examples = correlation.examples_of_part((n, n, C))
    borders = problem.cost(C, 1)
    N, F = n + k - 1, (n + k - 1) // 2 + 1
    whole = 2 * F * n * n * C + 4 * F * N * n * C + 3 * F * N * C**2
    counted = frequencies.multiplications(problem.axes, C, 1, examples)
    assert counted == whole + 2 * k * (2 * k - 1) * F * N * C**2 / examples
    borders -= correlation._COST_OF_FREQUENCIES * counted
    assert whole + 0.7 * borders < total <= whole + borders
    assert n**2 * k * (2 * k - 1) * C**2 / total > 4


@pytest.mark.parametrize("most", [2**30, 1, 800])
def test_by_frequencies(monkeypatch, most):
    """All at once, one row of frequencies at a time, or several."""
    monkeypatch.setattr(correlation, "_COST_OF_FREQUENCIES", 0)
    monkeypatch.setattr(frequencies, "_MOST_BYTES", most)
    for padding, steps in itertools.product(("same", "valid"), STEPS.values()):
        for size, groups in ((3, 3), 1), ((4, 2), 2), ((1, 5), 1), ((2, 1), 2):
            compare((11, 14), Window(size, *steps, padding), 4, groups)


def test_by_frequencies_in_float32(monkeypatch):
    """As exact as the sum of products that it is of the largest element."""
    x = RNG.normal(size=(8, 7, 7, 64)) + 1
    window = Window((3, 3), (1, 1), (1, 1), "same")
    monkeypatch.setattr(correlation, "_COST_OF_FREQUENCIES", 0)
    found = autocorrelation.second_moment(tf.constant(x, tf.float32), window, 1)
    a = loops(x, window).reshape(-1, 9 * 64)
    expected = a.T @ a
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found[0], expected, atol=1e-6 * largest, rtol=0)


def test_no_patches_in_the_step(monkeypatch):
    """The block takes this way by itself, for half-precision inputs too."""
    from tfkfac.blocks import convolution

    def refuse(*_):
        raise AssertionError("patches were built")

    monkeypatch.setattr(convolution.patches, "extract", refuse)
    x = RNG.normal(size=(2, 9, 9, 3)).astype("float16")
    layer = keras.layers.Conv2D(4, 3, padding="same")
    layer.build(x.shape)
    block = convolution.ConvolutionBlock(layer)
    window = Window((3, 3), (1, 1), (1, 1), "same")
    a = loops(x.astype("float64"), window).reshape(-1, 27)
    a = np.concatenate([a, np.ones([len(a), 1])], axis=1)
    found = block.input_moment(
        tf.constant(x), None, len(a), tf.float32, tf.float32
    )
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found[0], a.T @ a, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("batch", [None, 6, 7])
def test_parts_of_a_batch(monkeypatch, batch):
    """In parts, also with a rest or for no known number of examples."""
    x = RNG.normal(size=(batch or 7, 5, 4, 2))
    window = Window((3, 3), (1, 1), (1, 1), "same")
    expected = autocorrelation.second_moment(tf.constant(x), window, 1)
    monkeypatch.setattr(correlation, "_PART", 2 * 5 * 4 * 2 * 8)
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
