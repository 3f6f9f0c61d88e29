"""Blocks of equal shapes are inverted as one: each as if it were alone."""

import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfkfac import inversion, inverters
from tfkfac.blocks import ConvolutionBlock
from tfkfac.blocks.factored import MAX_FAILURES
from tfkfac.state import Curvature

GROUPS, SIDE, OUTPUTS, DAMPING = 2, 3, 2, 0.3
pytestmark = pytest.mark.usefixtures("float64")


def members(number, values):
    """Convolutions in two groups; of each factor the matrices of the groups."""
    curvature, found = Curvature(), []
    for i in range(number):
        layer = layers.Conv1D(GROUPS * OUTPUTS, SIDE, groups=2, use_bias=False)
        layer.build((None, 5, GROUPS))
        block = ConvolutionBlock(layer)
        block.path = f"member_{i}"

        def add_state(name, initial, path=block.path):
            return curvature.add(f"{path}/{name}", initial)

        block.build_factors(add_state, tf.float64, accumulates=False)
        block.build_inverses(
            inverters.CholeskyInverter(), add_state, tf.float64
        )
        for factor, value in zip(block.factors, values[i]):
            factor.update(tf.constant(value), tf.constant(0.9, tf.float64))
        found.append(block)
    return found


def matrices(rng):
    """Factors of one member, [groups, side, side]."""
    sides = (SIDE, OUTPUTS)
    found = (rng.normal(size=(GROUPS, n, n + 1)) for n in sides)
    return [x @ x.swapaxes(1, 2) for x in found]


def expected(A, G, damping=DAMPING):
    """The inverses of one group, in NumPy."""
    pi = np.sqrt(np.trace(A) / len(A) / (np.trace(G) / len(G)))
    root = np.sqrt(damping)
    return (
        np.linalg.inv(A + pi * root * np.eye(len(A))),
        np.linalg.inv(G + root / pi * np.eye(len(G))),
    )


def invert(blocks, in_graph, named=None):
    if named is None:
        named = {block: tf.Variable(False) for block in blocks}

    def run():
        damping = {"damping": tf.constant(DAMPING, tf.float64)}
        kind = inverters.CholeskyInverter()
        inversion.invert(blocks, kind, damping, named)

    (tf.function(run, autograph=False) if in_graph else run)()


def inverses(block):
    return [v.numpy() for v in block.inverses]


@pytest.mark.parametrize("in_graph", [False, True])
def test_each_is_inverted_as_if_alone(in_graph):
    rng = np.random.default_rng(0)
    values = [matrices(rng) for _ in range(3)]
    blocks = members(3, values)
    invert(blocks, in_graph)
    for block, (A, G) in zip(blocks, values):
        for j in range(GROUPS):
            for found, value in zip(inverses(block), expected(A[j], G[j])):
                np.testing.assert_allclose(found[j], value, rtol=1e-9)
        np.testing.assert_array_equal(block.failures, [0, 0])


@pytest.mark.parametrize("in_graph", [False, True])
def test_one_that_fails_leaves_the_others(in_graph, capfd):
    """Its inverse stays and its average starts anew; one without factors, too,
    stays as it is, and counts no failure."""
    rng = np.random.default_rng(1)
    values = [matrices(rng) for _ in range(4)]
    blocks = members(4, values)
    good, bad, unknown, least = blocks
    bad.factors[0].moment.assign(-1e6 * tf.ones_like(bad.factors[0].moment))
    bad.failures.assign([MAX_FAILURES - 1, 7])
    unknown.factors[1].weight.assign(0.0)
    least.failures.assign([2, 3])
    before = [inverses(block) for block in blocks]
    invert(blocks, in_graph)
    for block, (A, G) in ((good, values[0]), (least, values[3])):
        for j in range(GROUPS):
            for found, value in zip(inverses(block), expected(A[j], G[j])):
                np.testing.assert_allclose(found[j], value, rtol=1e-9)
    for i in (1, 2):
        for found, value in zip(inverses(blocks[i]), before[i]):
            np.testing.assert_array_equal(found, value)
    counts = [block.failures.numpy().tolist() for block in blocks]
    assert counts == [[0, 0], [MAX_FAILURES, 8], [0, 0], [0, 3]]
    assert [float(f.weight) for f in bad.factors] == [0, 0]
    assert float(unknown.factors[0].weight) > 0
    assert capfd.readouterr().err.count("member_1: 5 inversions failed") == 1


@pytest.mark.parametrize("in_graph", [False, True])
def test_members_that_are_not_resolved_are_named_once(in_graph, capfd):
    """One of condition 2e15; one that takes ten times the damping. Their
    inverses are those of any other member, and one that fails is not named."""
    rng = np.random.default_rng(2)
    values = [matrices(rng) for _ in range(4)]
    A, G = values[1]
    A[0] = np.full((SIDE, SIDE), 1e29)
    G[0] = np.eye(OUTPUTS)
    A, G = values[2]
    A[1] = np.diag([3.0, 3.0, -2.0])
    G[1] = np.eye(OUTPUTS) * 0.5
    blocks = members(4, values)
    blocks[3].factors[0].moment.assign(
        -1e6 * tf.ones_like(blocks[3].factors[0].moment)
    )
    named = {block: tf.Variable(False) for block in blocks}
    for _ in range(2):
        invert(blocks, in_graph, named)
    error = capfd.readouterr().err
    assert error.count("tfkfac: ") == 1
    assert "member_1, member_2: float64 does not resolve the factors" in error
    assert "set_floatx" not in error
    assert [bool(named[block]) for block in blocks] == [
        False,
        True,
        True,
        False,
    ]
    for i, damping in ((0, DAMPING), (1, DAMPING), (2, 10 * DAMPING)):
        for j in range(i == 1, GROUPS):
            right = expected(*(m[j] for m in values[i]), damping)
            for found, value in zip(inverses(blocks[i]), right):
                np.testing.assert_allclose(found[j], value, 1e-9, 1e-12)
