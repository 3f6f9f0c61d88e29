"""Laws that hold for all inputs, on inputs that hypothesis thinks of."""

import json
import math

import keras
import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tfkfac
from tfkfac import schedules
from tfkfac.blocks import Moment
from tfkfac.distributed import assignment, packing
from trainers.data import batches

FLOATS = st.sampled_from(["float16", "float32", "float64"])
SIDES = st.integers(0, 5)
SEEDS = st.integers(0, 2**31 - 1)


def law(examples: int):
    """Of inputs that are the same in every run of the tests."""
    return settings(derandomize=True, max_examples=examples, deadline=None)


def normal(seed, *shape, dtype="float64"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


# Packing.


@law(40)
@given(st.lists(st.tuples(FLOATS, st.lists(SIDES, max_size=4)), max_size=6))
def test_flattened_tensors_come_back(of_tensors):
    """Of any shapes, with no elements too, and any types of float."""
    tensors = [
        tf.constant(normal(i, *shape, dtype=dtype))
        for i, (dtype, shape) in enumerate(of_tensors)
    ]
    flat = packing.flatten(tensors, packing.widest(t.dtype for t in tensors))
    found = packing.unflatten(flat, tensors)
    assert flat.shape == [sum(t.shape.num_elements() for t in tensors)]
    assert len(found) == len(tensors)
    for value, given_value in zip(found, tensors):
        np.testing.assert_array_equal(value, given_value)


def moment(shape, seed, dtype):
    """A second moment [groups, dim, dim], or a diagonal [groups, dim]."""
    total = normal(seed, *shape, dtype=dtype)
    if len(shape) == 3:
        total = total + total.swapaxes(1, 2)
    return Moment(tf.constant(total), tf.constant(1.0 + seed, dtype))


GROUPS, DIM = st.integers(1, 3), st.integers(1, 6)
SHAPES = st.one_of(
    st.tuples(GROUPS, DIM), st.builds(lambda g, n: (g, n, n), GROUPS, DIM)
)
MOMENTS = st.lists(SHAPES, max_size=5)


@law(50)
@given(MOMENTS, st.sampled_from(["float32", "float64"]), st.integers(1, 10**6))
def test_moments_come_back_and_add_up(shapes, dtype, count):
    """What several ranks send may be added before it is unpacked."""
    given_moments = [moment(s, seed, dtype) for seed, s in enumerate(shapes)]
    flat = packing.flatten_moments(given_moments, tf.constant(count, dtype))
    for ranks in (1, 2):
        found, total = packing.unflatten_moments(ranks * flat, given_moments)
        assert float(total) == ranks * count
        for value, expected in zip(found, given_moments):
            np.testing.assert_array_equal(value.total, ranks * expected.total)
            assert float(value.rows) == ranks * float(expected.rows)


@law(30)
@given(MOMENTS.filter(len), st.integers(-30, 30), st.integers(1, 4))
def test_moments_in_half_precision_keep_their_scale(shapes, exponent, ranks):
    """To float16's precision, however large or small; N and R exactly."""
    given_moments = [moment(s, k, "float32") for k, s in enumerate(shapes)]
    for m in given_moments:
        m.total *= 2.0**exponent
    sent = packing.flatten_half(given_moments, tf.constant(70_001.0))
    flat = packing.sum_half(tf.stack([sent] * ranks), given_moments)
    found, total = packing.unflatten_moments(flat, given_moments)
    assert float(total) == ranks * 70_001
    for value, expected in zip(found, given_moments):
        assert float(value.rows) == ranks * float(expected.rows)
        expected = ranks * expected.total.numpy()
        atol = 1e-3 * np.abs(expected).max()
        np.testing.assert_allclose(value.total, expected, rtol=0, atol=atol)


# Assignment.

COSTS = st.floats(0, 1e12)
ITEMS = st.lists(
    st.builds(assignment.Item, COSTS, COSTS, COSTS, COSTS, COSTS), max_size=12
)


@law(80)
@given(ITEMS, st.integers(1, 9))
def test_each_item_has_one_owner_and_no_rank_is_below_the_bound(items, ranks):
    owners = assignment.assign(items, ranks)
    assert owners == assignment.assign(list(items), ranks)
    assert len(owners) == len(items)
    assert all(0 <= owner < ranks for owner in owners)
    loads = assignment.loads(items, owners, ranks)
    for name, bound in assignment.bounds(items, ranks).items():
        of_ranks = [load[name] for load in loads]
        total = sum(getattr(item, name) for item in items)
        assert math.isclose(sum(of_ranks), total, abs_tol=1e-3)
        assert max(of_ranks) >= bound * (1 - 1e-9)


@law(40)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 6))
def test_inversions_are_at_most_twice_their_bound(sides, ranks):
    """The mean over the ranks plus the largest item, as of any list that is
    dealt to the emptiest rank (Graham 1966)."""
    items = [assignment.Item(inversion=float(n**3)) for n in sides]
    owners = assignment.assign(items, ranks)
    loads = assignment.loads(items, owners, ranks)
    least = assignment.bounds(items, ranks)["inversion"]
    assert max(load["inversion"] for load in loads) <= 2 * least


# Schedules.

POSITIVE = st.floats(1e-6, 1e3)
COUNTS = st.integers(0, 10**6)


def of_config(schedule):
    """A schedule as JSON gives it back."""
    config = keras.saving.serialize_keras_object(schedule)
    return keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))


def values(schedule, updates):
    return [float(schedule(tf.constant(t, tf.int64))) for t in updates]


@law(20)
@given(
    POSITIVE, st.floats(1.01, 1e4), st.floats(10, 1e5),
    st.lists(COUNTS, min_size=2, max_size=5),
)  # fmt: skip
def test_a_damping_falls_to_its_target(target, ratio, steps, updates):
    damping = schedules.WarmupDamping(ratio * target, target, steps)
    found = values(damping, sorted(updates))
    assert found == sorted(found, reverse=True)
    assert all(target * 0.999 <= v <= ratio * target * 1.001 for v in found)
    assert values(of_config(damping), sorted(updates)) == found
    assert math.isclose(*values(damping, [0]), ratio * target, rel_tol=1e-6)


@law(20)
@given(
    POSITIVE, st.floats(0.1, 1e4), st.floats(0, 50), st.floats(0.1, 50),
    st.floats(0.1, 12), st.floats(0, 0.99),
    st.lists(COUNTS, min_size=2, max_size=5),
)  # fmt: skip
def test_a_rate_falls_to_0_and_the_momentum_with_it(
    initial, per_epoch, start, length, power, momentum, updates
):
    rate = schedules.EpochPolynomialDecay(
        initial, per_epoch, start=start, end=start + length, power=power
    )
    updates = [0, *sorted(updates), math.ceil(per_epoch * (start + length)) + 1]
    found = values(rate, updates)
    assert found == sorted(found, reverse=True) and found[-1] == 0
    assert math.isclose(found[0], initial, rel_tol=1e-6)
    assert values(of_config(rate), updates) == found
    coupled = schedules.CoupledMomentum(momentum, rate)
    expected = [momentum / initial * value for value in found]
    np.testing.assert_allclose(
        values(coupled, updates), expected, rtol=1e-5, atol=1e-30
    )
    assert values(of_config(coupled), updates) == values(coupled, updates)


@law(20)
@given(
    st.sampled_from([tfkfac.GrowingInterval, tfkfac.LateInterval]),
    st.floats(0.1, 1e4), st.integers(0, 1000),
    st.lists(COUNTS, min_size=2, max_size=5),
)  # fmt: skip
def test_intervals_grow_from_1_to_20(kind, per_epoch, after, updates):
    interval = kind(per_epoch, after)
    found = values(interval, sorted(updates))
    assert found == sorted(found) and set(found) <= {1, 6, 11, 16, 20}
    assert all(v == 1 for t, v in zip(sorted(updates), found) if t < after)
    assert values(of_config(interval), sorted(updates)) == found


def add_variable(shape, initializer, name, dtype="float32"):
    return keras.Variable(initializer, shape=shape, dtype=dtype, name=name)


@law(25)
@given(st.integers(1, 15), st.booleans(), st.integers(1, 40))
def test_a_period_is_due_at_0_and_then_each_time(period, scheduled, last):
    """As a number or as a schedule that returns it, without skipped steps."""
    value = (lambda t: tf.constant(period)) if scheduled else period
    found = schedules.Period(
        "inverse_update_period", value, add_variable=add_variable
    )
    due = []
    for t in range(last):
        if bool(found.due(tf.constant(t, tf.int64))):
            due.append(t)
            found.done(tf.constant(t, tf.int64))
    assert due == list(range(0, last, period))


# The order of the data.


@law(6)
@given(st.integers(1, 30), st.integers(1, 6), st.sampled_from([1, 2, 3]), SEEDS)
def test_each_example_comes_once_an_epoch(size, part, ranks, seed):
    """Whatever the batch; the parts of the ranks make the batch of one."""
    batch = part * ranks
    steps = -(-2 * size // batch)

    def indices(rank, of, first=0):
        part_of = batches.Part(batch, rank, of)
        stream = batches.shuffled(size, part_of, seed, first)
        return [i for _, i in stream.take(steps - first).as_numpy_iterator()]

    whole = indices(0, 1)
    stream = np.concatenate(whole)
    for epoch in range(2):
        own = stream[epoch * size : (epoch + 1) * size]
        np.testing.assert_array_equal(np.sort(own), np.arange(size))
    of_ranks = [indices(rank, ranks) for rank in range(ranks)]
    for batch_of_all, *parts in zip(whole, *of_ranks):
        np.testing.assert_array_equal(batch_of_all, np.concatenate(parts))
    for resumed, expected in zip(
        indices(0, 1, steps // 2), whole[steps // 2 :]
    ):
        np.testing.assert_array_equal(resumed, expected)


@law(8)
@given(st.integers(1, 40), st.integers(1, 6), st.sampled_from([1, 2, 3]))
def test_each_example_is_evaluated_once(size, part, ranks):
    found = []
    for rank in range(ranks):
        own = batches.Part(part * ranks, rank, ranks)
        for index, weight in batches.in_turn(size, own).as_numpy_iterator():
            assert index.shape == (part,)
            found += [i for i, w in zip(index, weight) if w]
    assert sorted(found) == list(range(size))
