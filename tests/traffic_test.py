"""The bytes that ranks send: those of an update, and by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from planned_models import LOSS, dense, equal, tokens

import tfkfac
from tfkfac.distributed.communicator import LocalCommunicator
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

    def gather_objects(self, value):
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
                tfkfac.KFAC(factor_update_period=2, model=model, **settings),
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
