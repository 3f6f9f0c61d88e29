"""What four ranks send each other, against sums over all of them."""

import numpy as np
import pytest
import tensorflow as tf
import two_ranks

from tfkfac.blocks import Moment
from tfkfac.distributed.communicator import Names
from tfkfac.distributed.distributor import Distributor

RNG = np.random.default_rng(0)
RANKS, BLOCKS = 4, ["a", "b", "c"]  # They are keys alone.
OWNERS = [0, 2, 3]
# A variable of each block, and one without; the last has no gradient sum.
SHAPES = {10: (3, 2), 11: (5,), 12: (), 13: (2, 2)}
OWNER_OF = {10: 0, 11: 2, 12: 3, 13: 1}
TYPES = {10: "float32", 11: "float64", 12: "float32", 13: "float32"}
NUMBERS = {"rate": tf.constant(0.1)}
group_sizes = pytest.mark.parametrize("g", [1, 2, 4])


NAMES = Names()


def tensors(seed):
    rng = np.random.default_rng(seed)
    return {k: tf.constant(rng.normal(size=s), TYPES[k])
            for k, s in SHAPES.items()}  # fmt: skip


def on_ranks(function, g=1, half=False):
    def of_rank(ranks):
        made = Distributor(ranks, g, BLOCKS, OWNERS, OWNER_OF, NAMES, half)
        return function(made, ranks.rank)

    return two_ranks.run(RANKS, of_rank)


def close(found, expected, rtol=1e-5):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol)


@group_sizes
def test_gradients_are_those_of_the_joint_batch(g):
    """V = sum D V / sum D, where it is preconditioned."""

    def reduce(distributor, rank):
        D = tf.constant(rank + 1.0)
        sums = {k: (rank + 1) * v for k, v in tensors(rank).items()}
        return distributor.reduce_gradients(
            sums, D, tf.constant(True), tf.constant(5 * rank + 1), NUMBERS
        )

    for rank, (V, finite, examples) in enumerate(on_ranks(reduce, g)):
        held = {k for k, o in OWNER_OF.items() if o // g == rank // g}
        assert set(V) == held and finite
        before, joint = (int(n) for n in examples)
        assert before == sum(5 * r + 1 for r in range(rank))
        assert joint == sum(5 * r + 1 for r in range(RANKS))
        for k in held:
            of_ranks = [(r + 1) * tensors(r)[k].numpy() for r in range(RANKS)]
            assert V[k].dtype == TYPES[k]
            close(V[k], sum(of_ranks) / 10)


@group_sizes
def test_all_ranks_know_that_one_is_not_finite(g):
    def reduce(distributor, rank):
        finite = tf.constant(rank != 2)
        one = tf.constant(1)
        return distributor.reduce_gradients(
            tensors(0), 1.0, finite, one, NUMBERS
        )[1]

    assert not any(on_ranks(reduce, g))


def moments(rank):
    """Two of the first block, one of each other; the last a diagonal."""
    rng = np.random.default_rng(rank)
    shapes = {"a": [(2, 3, 3), (1, 2, 2)], "b": [(1, 4, 4)], "c": [(2, 5)]}
    found = {}
    for block, of_block in shapes.items():
        values = [rng.normal(size=s).astype("float32") for s in of_block]
        values = [v + v.swapaxes(1, 2) if v.ndim > 2 else v for v in values]
        found[block] = [
            Moment(tf.constant(v), tf.constant(10.0 * rank + i))
            for i, v in enumerate(values)
        ]
    return found


@pytest.mark.parametrize("half", [False, True])
def test_moments_reach_the_owners(half):
    def reduce(distributor, rank):
        return distributor.reduce_moments(
            moments(rank), tf.constant(rank + 2.0)
        )

    given = [moments(rank) for rank in range(RANKS)]
    for rank, (found, count) in enumerate(on_ranks(reduce, half=half)):
        assert float(count) == 2 + 3 + 4 + 5
        assert list(found) == [b for b, o in zip(BLOCKS, OWNERS) if o == rank]
        for block, of_block in found.items():
            for i, moment in enumerate(of_block):
                totals = [g[block][i].total.numpy() for g in given]
                close(moment.total, sum(totals), 5e-3 if half else 1e-6)
                assert float(moment.rows) == 60 + 4 * i


@group_sizes
def test_updates_reach_all_ranks(g):
    """And the sums over the parts of all groups, each counted once."""
    U = tensors(7)

    def gather(distributor, rank):
        held = {k: U[k] for k, o in OWNER_OF.items() if distributor.holds(o)}
        sums = tf.constant([1.0 + rank // g, 100.0], tf.float64)
        return distributor.gather_updates(held, sums, tensors(0))

    groups = RANKS // g
    for found, sums in on_ranks(gather, g):
        assert set(found) == set(U) and sums.dtype == tf.float64
        close(sums, [groups * (groups + 1) / 2, 100 * groups])
        for k, u in U.items():
            assert found[k].dtype == u.dtype
            np.testing.assert_array_equal(found[k], u)


@group_sizes
def test_inverses_are_shared_within_the_group(g):
    """Two variables each, of two types; -1 is what a rank had before."""

    def share(distributor, rank):
        variables = {}
        for i, block in enumerate(BLOCKS):
            own = distributor.owns(block)
            assert own == (OWNERS[i] == rank)
            if distributor.holds(OWNERS[i]):
                variables[block] = [
                    tf.Variable([[i + 1.0, 2.0] if own else [-1.0, -1.0]]),
                    tf.Variable(7 + i if own else -1, dtype=tf.int64),
                ]
        distributor.share_inverses(variables)
        return {b: [v.numpy() for v in vs] for b, vs in variables.items()}

    for rank, found in enumerate(on_ranks(share, g)):
        held = [i for i, o in enumerate(OWNERS) if o // g == rank // g]
        assert list(found) == [BLOCKS[i] for i in held]
        for i in held:
            matrix, number = found[BLOCKS[i]]
            np.testing.assert_array_equal(matrix, [[i + 1, 2]])
            assert number == 7 + i


def test_examples_of_the_ranks_before_and_of_all():
    def count(distributor, rank):
        return distributor.count_examples(tf.constant(rank + 3))

    found = [tuple(map(int, pair)) for pair in on_ranks(count)]
    assert found == [(0, 18), (3, 18), (7, 18), (12, 18)]


def test_one_process_sends_nothing():
    def alone(ranks):
        made = Distributor(ranks, 1, BLOCKS, [0] * 3, OWNER_OF, NAMES)
        given = tensors(0)
        V, finite, examples = made.reduce_gradients(
            {k: 4 * v for k, v in given.items()},
            tf.constant(4.0),
            True,
            9,
            NUMBERS,
        )
        assert finite and [int(n) for n in examples] == [0, 9]
        for k, v in given.items():
            close(V[k], v)
        of_blocks = moments(1)
        assert made.reduce_moments(of_blocks, 3.0) == (of_blocks, 3.0)
        assert made.gather_updates(given, 5.0, given) == (given, 5.0)
        assert [int(n) for n in made.count_examples(6)] == [0, 6]

    two_ranks.run(1, alone)
