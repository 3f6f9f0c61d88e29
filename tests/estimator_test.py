"""From moments of a block to U, by hand in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfkfac import inverters
from tfkfac.blocks import DenseBlock, Moment
from tfkfac.distributed.communicator import LocalCommunicator, Names
from tfkfac.distributed.distributor import Distributor
from tfkfac.estimator import Estimator, state_dtype
from tfkfac.state import Curvature

RNG = np.random.default_rng(0)
N, R, DAMPING = 5.0, 8.0, 0.3
pytestmark = pytest.mark.usefixtures("float64")


def make(kind="eigen", **options):
    """An estimator of a dense layer with a bias; A is 4 x 4, G 2 x 2."""
    layer = layers.Dense(2)
    layer.build((None, 3))
    block = DenseBlock(layer)
    block.path = "dense"
    ids = {id(v): 0 for v in block.variables}
    alone = Distributor(LocalCommunicator(), 1, [block], [0], ids, Names())
    estimator = Estimator(
        [block], alone, inverters.get(kind), Curvature(), "float32", **options
    )
    return estimator, block


def symmetric(dim):
    x = RNG.normal(size=(1, dim, dim))
    return x @ x.swapaxes(1, 2)


def moments(block):
    return {
        block: [
            Moment(tf.constant(symmetric(dim)), tf.constant(R, tf.float64))
            for dim in (4, 2)
        ]
    }


def totals(given, block):
    return [m.total.numpy()[0] for m in given[block]]


def of(value):
    return tf.constant(value, tf.float64)


def factors(block):
    return [f.value().numpy()[0] for f in block.factors]


def test_a_is_divided_by_n_and_g_by_r():
    estimator, block = make()
    given = moments(block)
    estimator.update_factors(given, of(N), of(0.9))
    A, G = totals(given, block)
    for found, expected in zip(factors(block), (A / N, G / R)):
        np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_no_rows_leave_the_factors():
    """0 / 0 is no second moment."""
    estimator, block = make()
    estimator.update_factors(moments(block), of(N), of(0.9))
    before = factors(block)
    empty = {
        block: [Moment(0 * m.total, 0 * m.rows) for m in moments(block)[block]]
    }
    estimator.update_factors(empty, of(0.0), of(0.9))
    for found, expected in zip(factors(block), before):
        np.testing.assert_array_equal(found, expected)


def test_u_for_v():
    """U = V before the refresh, (A (x) G + l)^-1 V after it."""
    estimator, block = make()
    given = moments(block)
    estimator.update_factors(given, of(N), of(0.0))
    V = RNG.normal(size=(4, 2))
    kernel, bias = block.variables
    gradients = {id(kernel): of(V[:3]), id(bias): of(V[3]), 1: of(9.0)}
    dampings = {"damping": of(DAMPING)}
    assert estimator.refresh_needed
    before = estimator.precondition(gradients, {"damping": of(0.0)})
    np.testing.assert_array_equal(before[id(kernel)], V[:3])
    estimator.refresh([block], dampings)
    U = estimator.precondition(gradients, dampings)
    A, G = totals(given, block)
    F = np.kron(A / N, G / R) + DAMPING * np.eye(8)
    expected = np.linalg.solve(F, V.ravel()).reshape(4, 2)
    np.testing.assert_allclose(U[id(kernel)], expected[:3], rtol=1e-9)
    np.testing.assert_allclose(U[id(bias)], expected[3], rtol=1e-9)
    assert float(U[1]) == 9.0  # Of no block.
    without = {id(kernel): of(V[:3])}
    U = estimator.precondition(without, dampings)
    np.testing.assert_array_equal(U[id(kernel)], V[:3])


def test_micro_steps_are_one_update():
    estimator, block = make(accumulates=True)
    first, second, spoilt = (moments(block) for _ in range(3))
    started = tf.constant(False)
    estimator.accumulate(spoilt, of(N), started)
    estimator.discard()
    estimator.accumulate(first, of(N), started)
    estimator.accumulate(second, of(3.0), tf.constant(True))
    assert not any(f.known() for f in block.factors)
    estimator.finish(of(0.0))
    (A, G), (B, H) = totals(first, block), totals(second, block)
    expected = (A + B) / (N + 3), (G + H) / (2 * R)
    for found, value in zip(factors(block), expected):
        np.testing.assert_allclose(found, value, rtol=1e-13)


def test_factors_as_they_were_last_inverted():
    estimator, block = make("cholesky", keep_inverted=True)
    estimator.update_factors(moments(block), of(N), of(0.0))
    estimator.invert([block], {"damping": of(DAMPING)})
    inverted = factors(block)
    estimator.update_factors(moments(block), of(N), of(0.0))
    for found, value in zip(estimator.inverted[block], inverted):
        np.testing.assert_array_equal(found[0], value)
    assert np.abs(factors(block)[0] - inverted[0]).max() > 0.1


def test_a_failed_inversion_is_tried_with_more_damping():
    """G is indefinite: sqrt(l) / pi does not make up for it, ten times l do."""
    estimator, block = make("cholesky")
    A, G = np.eye(4)[None], np.diag([-0.5, 2.5])[None]
    for factor, value in zip(block.factors, (A, G)):
        factor.update(of(value), of(0.0))  # Of equal traces, so that pi is 1.
    estimator.invert([block], {"damping": of(0.04)})
    V = np.ones([4, 2])
    kernel, bias = block.variables
    U = estimator.precondition(
        {id(kernel): of(V[:3]), id(bias): of(V[3])}, {"damping": of(0.04)}
    )
    root = np.sqrt(0.4)
    expected = 1 / (1 + root) / (np.array([-0.5, 2.5]) + root)
    np.testing.assert_allclose(U[id(bias)], expected, rtol=1e-9)
    assert int(block.failures[1]) == 0


def test_the_type_of_the_state():
    types = {"float16": "float32", "bfloat16": "float32",
             "float32": "float32", "float64": "float64"}  # fmt: skip
    for own, state in types.items():
        assert state_dtype(keras.Variable(0.0, dtype=own)) == state
