"""Numbers of several ranks, compared by sums alone."""

import numpy as np
import pytest
import tensorflow as tf
import two_ranks

from tfkfac.distributed import agreement


def compare(*numbers, names=("damping", "learning_rate")):
    """Has a rank for each row of numbers compare them, in a step's way."""

    def of_rank(ranks):
        own = {k: tf.constant(x) for k, x in zip(names, numbers[ranks.rank])}
        made = agreement.Agreement(own, ranks, "numbers")
        own = made.digits(tf.float32)
        assert own.shape == [agreement.LENGTH] and own.dtype == tf.float32
        made.require(ranks.all_reduce(own, "sums"))

    two_ranks.run(len(numbers), of_rank)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_equal_numbers_cost_no_collective(ranks, monkeypatch):
    def refuse(*args):
        raise AssertionError

    monkeypatch.setattr(two_ranks.Threads, "all_gather", refuse)
    rng = np.random.default_rng(ranks)
    for _ in range(20):
        row = rng.normal(size=2) * 10.0 ** rng.integers(-9, 9)
        compare(*[row] * ranks)
    compare(*[(np.nan, np.inf)] * ranks)


@pytest.mark.parametrize(
    "other, message",
    [
        ((0.1, 0.03), "Rank 2 steps with learning_rate = 0.03, and rank 0 "),
        ((0.0, 0.02), "Rank 2 steps with damping = 0, and rank 0 with 0.1"),
        ((np.nan, 0.02), "Rank 2 steps with damping = nan, "),
        ((0.1, np.inf), "Rank 2 steps with learning_rate = inf, "),
        ((0.02, 0.1), "Rank 2 steps with damping = 0.02, "),
    ],
)
def test_a_rank_that_differs_is_named_to_all(other, message):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        compare((0.1, 0.02), (0.1, 0.02), other)
    said = agreement.sentence(caught.value)
    assert said.startswith(message) and "assign it on all ranks" in said


def test_any_bit_is_seen_and_rounding_is_not_refused(monkeypatch):
    """Machines of different kinds may round the value of a schedule."""
    gathered = []
    original = two_ranks.Threads.all_gather

    def gather(self, *args):
        gathered.append(self.rank)
        return original(self, *args)

    monkeypatch.setattr(two_ranks.Threads, "all_gather", gather)
    compare((1.0, 2.0), (1.0, np.nextafter(2.0, 3.0)))
    assert sorted(gathered) == [0, 1]
    with pytest.raises(tf.errors.InvalidArgumentError, match="rate = 2.001"):
        compare((1.0, 2.0), (1.0, 2.001))


def test_other_errors_say_nothing_of_numbers():
    error = tf.errors.InvalidArgumentError(None, None, "max_skipped_steps")
    assert agreement.sentence(error) is None
