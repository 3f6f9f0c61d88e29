"""Which elements of s are of which column, told by changes of the weights."""

import numpy as np
import pytest

from tfkfac.verification.layer_map import UnclearColumnsError, find_columns

RNG = np.random.default_rng(0)


def grouped(a):
    """s = W^T a with a [groups, rows, d_in], as [rows, groups * d_out]."""

    def forward(D):
        s = np.einsum("gri,gij->rgj", a, D)
        return s.reshape(a.shape[1], -1)

    return forward


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 1), (1, 4, 7), (3, 2, 5), (6, 3, 1)])
def test_columns_wherever_they_lie(shape, half):
    """s is [2, columns, 3]: the columns are not last."""
    groups, d_in, d_out = shape
    a = RNG.normal(size=(groups, 6, d_in))
    places = RNG.permutation(groups * d_out)

    def laid(s):
        return s[:, places].reshape(2, 3, -1).transpose(0, 2, 1)

    columns = find_columns(
        lambda D: laid(grouped(a)(D)), shape, np.random.default_rng(1), half
    )
    g = RNG.normal(size=(groups, 6, d_out))
    s = laid(g.transpose(1, 0, 2).reshape(6, -1))
    np.testing.assert_array_equal(columns.rows(s), g)


def test_many_columns_take_several_digits():
    a = RNG.normal(size=(1, 3, 4))
    columns = find_columns(grouped(a), (1, 4, 3000), RNG, False)
    g = RNG.normal(size=(1, 3, 3000))
    np.testing.assert_array_equal(columns.rows(g[0]), g)


def test_a_group_that_sees_zeros_is_not_known():
    a = RNG.normal(size=(2, 4, 3))
    a[1] = 0
    columns = find_columns(grouped(a), (2, 3, 2), RNG, False)
    rows = columns.rows(np.ones([4, 4]))
    assert (rows[0] == 1).all() and np.isnan(rows[1]).all()
    assert find_columns(grouped(0 * a), (2, 3, 2), RNG, False) is None


@pytest.mark.parametrize("parts_first", [True, False])
@pytest.mark.parametrize("half", [False, True])
def test_columns_that_are_there_several_times(parts_first, half):
    """s is [4, parts x columns], or [4, columns x parts]: rows are parts."""
    a = RNG.normal(size=(1, 12, 3))

    def laid(s):
        s = s.reshape(4, 3, 5)
        return (s if parts_first else s.transpose(0, 2, 1)).reshape(4, 15)

    columns = find_columns(lambda D: laid(grouped(a)(D)), (1, 3, 5), RNG, half)
    g = RNG.normal(size=(12, 5))
    np.testing.assert_array_equal(columns.rows(laid(g)), g[np.newaxis])


def test_outputs_that_are_no_columns():
    a = RNG.normal(size=(4, 3))

    def forward(D, places):
        return (a @ D[0])[:, places]

    with pytest.raises(UnclearColumnsError, match="2 columns moves 3 places"):
        find_columns(lambda D: forward(D, [0, 1, 1]), (1, 3, 2), RNG, False)
    with pytest.raises(UnclearColumnsError, match="some more than of others"):
        find_columns(lambda D: forward(D, [0, 1, 1, 1]), (1, 3, 2), RNG, False)

    def turned(D):  # The second column has the rows from last to first.
        s = a @ D[0]
        s = np.stack([s[:, 0], s[::-1, 1]], axis=1)
        return s.reshape(2, 4)

    with pytest.raises(UnclearColumnsError, match="another order in each row"):
        find_columns(turned, (1, 3, 2), RNG, False)
