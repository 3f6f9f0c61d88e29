"""Running averages of second moments, by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tfkfac.factors import DenseFactor, DiagonalFactor

KINDS = [DenseFactor, DiagonalFactor]
kinds = pytest.mark.parametrize("kind", KINDS)
RNG = np.random.default_rng(0)


def built(kind, accumulates=False, groups=2, dim=3):
    factor = kind("output_factor", groups, dim, rows_are_terms=False)
    names = []

    def add_state(name, initial):
        names.append(name)
        return tf.Variable(initial)

    factor.build(add_state, tf.float64, accumulates)
    assert names[:2] == ["output_factor/moment", "output_factor/weight"]
    assert len(names) == 2 + accumulates
    return factor


def moment(factor):
    """A random X, symmetric where it is a matrix."""
    x = RNG.normal(size=factor.shape)
    return x if factor.diagonal else x + x.swapaxes(1, 2)


def decay(rho):
    return tf.constant(rho, tf.float64)


@kinds
def test_the_average_is_without_the_bias_of_its_start(kind):
    factor = built(kind)
    assert not factor.known() and not np.any(factor.value())
    first, second = moment(factor), moment(factor)
    factor.update(tf.constant(first), decay(0.9))
    np.testing.assert_allclose(factor.value(), first, rtol=1e-14)
    factor.update(tf.constant(second), decay(0.9))
    # M = 0.09 X_1 + 0.1 X_2 and c = 0.19.
    expected = (0.09 * first + 0.1 * second) / 0.19
    np.testing.assert_allclose(factor.value(), expected, rtol=1e-14)
    assert float(factor.weight) == pytest.approx(0.19) and factor.known()
    factor.update(tf.constant(first), decay(0.0))
    np.testing.assert_array_equal(factor.value(), first)


@kinds
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_left_out(kind, bad):
    """An X; and an average, which starts anew."""
    factor = built(kind)
    first, second = moment(factor), moment(factor)
    spoilt = first.copy()
    spoilt[1, -1] = bad
    factor.update(tf.constant(first), decay(0.5))
    factor.update(tf.constant(spoilt), decay(0.5))
    np.testing.assert_allclose(factor.value(), first, rtol=1e-14)
    assert float(factor.weight) == 0.5
    factor.moment.assign(spoilt)
    factor.update(tf.constant(second), decay(0.5))
    np.testing.assert_allclose(factor.value(), second, rtol=1e-14)
    factor.weight.assign(bad)
    factor.update(tf.constant(first), decay(0.5))
    np.testing.assert_allclose(factor.value(), first, rtol=1e-14)


@kinds
def test_sums_over_micro_steps_leave_the_average(kind):
    factor = built(kind, accumulates=True)
    average = moment(factor)
    factor.update(tf.constant(average), decay(0.0))
    parts = [moment(factor) for _ in range(3)]
    parts[0][0, 0] = np.inf  # Of a sum that is given up.
    started = [False, False, True]  # The second begins anew.
    for part, flag in zip(parts, started):
        factor.accumulate(tf.constant(part), tf.constant(flag))
    total = factor.take_sum()
    np.testing.assert_allclose(total, parts[1] + parts[2], rtol=1e-14)
    np.testing.assert_array_equal(factor.value(), average)


def test_sizes():
    dense, diagonal = (
        k("input_factor", 4, 7, rows_are_terms=True) for k in KINDS
    )
    assert dense.shape == (4, 7, 7) and not dense.diagonal
    assert diagonal.shape == (4, 7) and diagonal.diagonal
    assert dense.rows_are_terms
