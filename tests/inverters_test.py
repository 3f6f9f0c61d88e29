"""Damped inverses of one block, against Kronecker products in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from tfkfac import inverters
from tfkfac.factors import DenseFactor, DiagonalFactor

RNG = np.random.default_rng(0)
GROUPS, N, M, DAMPING = 2, 4, 3, 0.3


def positive(dim):
    x = RNG.normal(size=(GROUPS, dim, dim + 2))
    return x @ x.swapaxes(1, 2)


A, G, V = positive(N), positive(M), RNG.normal(size=(GROUPS, N, M))
ALL_FLAGS = [(False, False), (True, False), (False, True), (True, True)]
flags = pytest.mark.parametrize("flags", ALL_FLAGS)


def as_given(matrix, diagonal):
    return np.diagonal(matrix, axis1=1, axis2=2) if diagonal else matrix


def as_used(matrix, diagonal):
    """The whole matrix of what is given."""
    return np.stack([np.diag(np.diag(m)) if diagonal else m for m in matrix])


def solved(inverter, flags, a=A, g=G):
    given = [tf.constant(as_given(m, d)) for m, d in zip((a, g), flags)]
    damping = tf.constant(DAMPING, tf.float64)
    state = inverter.invert(flags, given, damping)
    return inverter.precondition(tf.constant(V), state, damping).numpy()


def factored(flags, pi, a=A, g=G):
    found = []
    for i in range(GROUPS):
        left, right = (as_used(m, d)[i] for m, d in zip((a, g), flags))
        p = np.sqrt(np.trace(left) / N / (np.trace(right) / M))
        p = p if pi is None else pi
        left = left + p * np.sqrt(DAMPING) * np.eye(N)
        right = right + np.sqrt(DAMPING) / p * np.eye(M)
        found.append(np.linalg.solve(left, V[i]) @ np.linalg.inv(right))
    return np.stack(found)


@flags
@pytest.mark.parametrize("pi", [None, 1.0, 2.5])
def test_factored_damping(flags, pi):
    found = solved(inverters.CholeskyInverter(pi), flags)
    np.testing.assert_allclose(found, factored(flags, pi), rtol=1e-10)


@flags
def test_exact_damping(flags):
    """(A (x) G + l I)^-1, with V row-major."""
    a, g = (as_used(m, d) for m, d in zip((A, G), flags))
    expected = [
        np.linalg.solve(
            np.kron(a[i], g[i]) + DAMPING * np.eye(N * M), V[i].ravel()
        ).reshape(N, M)
        for i in range(GROUPS)
    ]
    found = solved(inverters.EigenInverter(), flags)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_pi_is_1_where_a_trace_is_0():
    zero = np.zeros_like(A)
    found = solved(inverters.CholeskyInverter(), (False, False), a=zero)
    expected = factored((False, False), 1.0, a=zero)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("kind", ["cholesky", "eigen"])
@pytest.mark.parametrize("diagonal", [False, True])
def test_a_block_of_one_factor(kind, diagonal):
    """F + l I: neither pi nor a root."""
    inverter = inverters.get(kind)
    damping = tf.constant(DAMPING, tf.float64)
    given = tf.constant(as_given(A, diagonal))
    state = inverter.invert([diagonal], [given], damping)
    found = inverter.precondition(tf.constant(V), state, damping)
    damped = as_used(A, diagonal) + DAMPING * np.eye(N)
    np.testing.assert_allclose(found, np.linalg.solve(damped, V), rtol=1e-9)


@flags
@pytest.mark.parametrize("kind", ["cholesky", "eigen"])
def test_before_a_refresh_u_is_v(kind, flags):
    kinds = [DiagonalFactor if d else DenseFactor for d in flags]
    factors = [
        k(name, GROUPS, dim, rows_are_terms=True)
        for k, name, dim in zip(kinds, "ag", (N, M))
    ]
    inverter = inverters.get(kind)
    state = inverter.start(factors, tf.float64)
    damping = tf.constant(0.0, tf.float64)
    found = inverter.precondition(tf.constant(V), [*state.values()], damping)
    np.testing.assert_array_equal(found, V)


def cond(d, damping):
    return (d[-1] + damping) / (d[0] + damping)


@flags
def test_rounding_of_exact_damping(flags):
    """The condition of A (x) G + l I; that of the worst part where a factor is
    diagonal; no error where both are."""
    given = [tf.constant(as_given(m, d)) for m, d in zip((A, G), flags)]
    inverter = inverters.EigenInverter()
    problem = flags, given, tf.constant(DAMPING, tf.float64)
    found = inverter.rounding(problem, inverter.invert(*problem))
    for i in range(GROUPS):
        d_A, d_G = np.linalg.eigvalsh(A[i]), np.linalg.eigvalsh(G[i])
        if flags[0]:
            d_A = np.diag(A[i]).max(keepdims=True)
        if flags[1]:
            d_G = np.diag(G[i]).max(keepdims=True)
        expected = cond(np.sort(np.outer(d_A, d_G).ravel()), DAMPING)
        expected *= 2.0**-52 * (not all(flags))
        np.testing.assert_allclose(found[i], expected, rtol=1e-9)


def scaled_condition(M, inverse):
    d = np.sqrt(np.diag(inverse))
    scale = np.outer(d, d)
    return np.linalg.norm(M * scale, 1) * np.linalg.norm(inverse / scale, 1)


@flags
def test_rounding_of_factored_damping(flags):
    """The worse condition of the dense factors, within the damping."""
    given = [tf.constant(as_given(m, d)) for m, d in zip((A, G), flags)]
    inverter = inverters.CholeskyInverter()
    problem = flags, given, tf.constant(DAMPING, tf.float64)
    state = inverter.invert(*problem)
    found = inverter.rounding(problem, state)
    for i in range(GROUPS):
        conds = [0.0] + [
            scaled_condition(m[i], inverse[i].numpy())
            for m, inverse, flag in zip((A, G), state, flags)
            if not flag
        ]
        np.testing.assert_allclose(found[i], 2.0**-52 * max(conds), rtol=1e-9)


@pytest.mark.parametrize("diagonal", [False, True])
def test_rounding_of_a_block_of_one_factor(diagonal):
    inverter = inverters.EigenInverter()
    given = tf.constant(as_given(A, diagonal))
    problem = [diagonal], [given], tf.constant(DAMPING, tf.float64)
    found = inverter.rounding(problem, inverter.invert(*problem))
    conds = [cond(np.linalg.eigvalsh(m), DAMPING) for m in A]
    expected = 2.0**-52 * np.array(conds) * (not diagonal)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_several_blocks_at_once():
    """As one by one, whatever their sides."""
    damping = tf.constant(DAMPING, tf.float64)
    problems = [
        ([False, False], [tf.constant(A), tf.constant(G)], damping),
        ([True, False], [tf.constant(as_given(A, True)), tf.constant(A)],
         2 * damping),
        ([False], [tf.constant(G)], damping),
    ]  # fmt: skip
    for kind in ("cholesky", "eigen"):
        inverter = inverters.get(kind)
        together = inverter.invert_all(problems)
        for problem, found in zip(problems, together):
            expected = inverter.invert(*problem)
            assert len(found) == len(expected)
            for x, y in zip(found, expected):
                # Eigenvectors have a sign of their own: both are one routine.
                np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


def test_which_one():
    own = inverters.CholeskyInverter(pi=2.0)
    assert inverters.get(own) is own
    assert inverters.CholeskyInverter.from_config(own.get_config()).pi == 2.0
    assert isinstance(inverters.get("eigen"), inverters.EigenInverter)
    with pytest.raises(ValueError, match="inverter='qr'.*cholesky.*eigen"):
        inverters.get("qr")
    for pi in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="pi=.*must be finite, > 0"):
            inverters.CholeskyInverter(pi=pi)
