"""The bytes that ranks send: those of an update, and by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from planned_models import LOSS, dense, equal, tokens

import tfkfac
from tfkfac.distributed.communicator import LocalCommunicator
from tfkfac.planning import traffic
from tools.counting import counted


class OneOfSeveral(LocalCommunicator):
    """A rank among others that do as it does, and send zeros."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size

    def all_reduce(self, tensor, name):
        return self.size * tensor

    def all_to_all(self, tensor, lengths, name):
        own = tf.split(tensor, lengths)[self.rank]
        return tf.tile(own[tf.newaxis], [self.size, 1])

    def all_gather(self, tensor, lengths, name):
        parts = [tf.zeros([n], tensor.dtype) for n in lengths]
        parts[self.rank] = tensor
        return parts

    def _gather(self, value, name):
        return [value] * self.size

    def split(self, members):
        own = next(m for m in members if self.rank in m)
        return OneOfSeveral(own.index(self.rank), len(own))


@pytest.mark.parametrize(
    "build, strategy, half",
    [
        (equal, "owner", False),
        (dense, 2, True),
        (dense, "replicated", False),
        (tokens, "owner", True),
        (tokens, 2, False),
    ],
)
def test_bytes_sent_are_those_of_an_update(build, strategy, half):
    """By the first and the last of 4 ranks, in each kind of step."""
    settings = {
        "strategy": strategy,
        "communication_dtype": "float16" if half else "float32",
    }
    x, y = np.zeros([4, 6], "int32"), np.zeros([4, 6], "int32")
    if build is not tokens:
        x = np.zeros([4, *build().input_shape[1:]], "float32")
        y = y[:, 0]
    keras.utils.clear_session(free_memory=False)
    planned = tfkfac.plan(build(), ranks=4, inputs=tf.constant(x), **settings)
    for rank in (0, 3):
        with counted(OneOfSeveral(rank, 4)) as counting:
            model = build()
            model.compile(
                tfkfac.KFAC(
                    factor_update_period=2,
                    inverse_update_period=10,
                    model=model,
                    **settings,
                ),
                LOSS,
                run_eagerly=True,
            )
        sent = []
        for _ in range(3):
            before = float(counting.sent)
            model.train_on_batch(x, y)
            sent.append(float(counting.sent) - before)
        expected = planned.ranks[rank].sent
        for found, kind in zip(
            sent, ("factors and inverses", "plain", "factors")
        ):
            assert found == pytest.approx(expected[kind], rel=1e-12), kind
    # What is shared out evenly takes no all-reduce.
    names = {call[0].__name__ for call in counting.traced}
    assert ("all_reduce" in names) == (build is not equal)


def parts():
    """Blocks of 10 and 6 elements; owners 0 and 1 of two ranks."""
    return [traffic.Part(10, [3, 2], 7), traffic.Part(6, [1], 4)]


def sent(kind, **options):
    return traffic.Traffic(parts(), [0, 1], 2, **options).sent(kind)


def test_bytes_by_hand():
    """Of two ranks: with V go 2 + 2 + 8 numbers, with U 3, with sums N, R."""
    # To the other its part of V, to it the own U.
    plain = [4 * ((12 + 6) + (3 + 10)), 4 * ((12 + 10) + (3 + 6))]
    assert sent("plain", group_size=1) == plain
    # The other's triangles.
    factors = [plain[0] + 4 * (1 + 2), plain[1] + 4 * (1 + 4 + 5 - 2 + 2 - 2)]
    assert sent("factors", group_size=1) == factors
    assert sent("factors and inverses", group_size=1) == factors
    # All of V to both: an all-reduce, and no U; inverses go to the group.
    assert sent("plain", group_size=2) == [4 * 28] * 2
    whole = sent("factors and inverses", group_size=2, item_size=8)
    less = sent("factors", group_size=2, item_size=8)
    assert [a - b for a, b in zip(whole, less)] == [8 * 8, 8 * 5]


def test_half_precision_is_for_statistics_alone():
    """N, R and the largest element as pairs: 2 + 4 for each sum."""
    full, half = (sent("plain", group_size=1, half=h) for h in (False, True))
    assert full == half
    found = sent("factors", group_size=1, half=True)
    assert [a - b for a, b in zip(found, half)] == [2 * 7, 2 * (2 + 2 * 4 + 5)]


def test_one_rank_sends_nothing():
    assert traffic.Traffic(parts(), [0, 0], 1, 1).sent("factors") == [0.0]
