"""Ranks as threads of one process: what they give each other, in lock-step."""

import threading
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfkfac.distributed.communicator import Communicator


class _Meeting:
    """Where the threads of a set of ranks hand over what they have."""

    def __init__(self, size: int):
        self.size, self.values = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=60)


class Threads(Communicator):
    """One of several ranks, each in a thread; eager alone."""

    def __init__(self, rank: int, meeting: _Meeting):
        self.rank, self.size, self._meeting = rank, meeting.size, meeting

    def _exchange(self, what: tuple, value: Any) -> list[Any]:
        """Returns what each rank gave; all call the same collective."""
        self._meeting.values[self.rank] = what, value
        self._meeting.barrier.wait()
        found = list(self._meeting.values)
        self._meeting.barrier.wait()
        kinds = [of_rank for of_rank, _ in found]
        if kinds != [what] * self.size:  # As Horovod does.
            message = f"Mismatched collectives: {kinds}"
            raise tf.errors.FailedPreconditionError(None, None, message)
        return [of_rank for _, of_rank in found]

    def all_reduce(self, tensor, name):
        what = "all_reduce", name, tensor.dtype, tuple(tensor.shape)
        return tf.add_n(self._exchange(what, tensor))

    def all_to_all(self, tensor, lengths, name):
        what = "all_to_all", name, tensor.dtype, tuple(lengths)
        parts = [tf.split(t, lengths) for t in self._exchange(what, tensor)]
        return tf.stack([of_rank[self.rank] for of_rank in parts])

    def all_gather(self, tensor, lengths, name):
        assert tensor.shape == [lengths[self.rank]]
        what = "all_gather", name, tensor.dtype, tuple(lengths)
        return self._exchange(what, tensor)

    def _gather(self, value, name):
        return self._exchange(("gather", name), value)

    def broadcast_object(self, value):
        return self._exchange(("broadcast_object",), value)[0]

    def broadcast_variables(self, variables):
        what = "broadcast_variables", len(variables)
        values = [tf.identity(v) for v in variables]
        for v, value in zip(variables, self._exchange(what, values)[0]):
            v.assign(value)

    def split(self, members):
        made = [_Meeting(len(ranks)) for ranks in members]
        made = self._exchange(("split", len(members)), made)[0]
        (i,) = [i for i, ranks in enumerate(members) if self.rank in ranks]
        return Threads(list(members[i]).index(self.rank), made[i])


def run(size: int, function: Callable[[Threads], Any]) -> list[Any]:
    """Returns what a function of the communicator returns on each rank."""
    meeting = _Meeting(size)
    found: list[Any] = [None] * size
    errors: list[BaseException] = []

    def of_rank(rank):
        try:
            found[rank] = function(Threads(rank, meeting))
        except threading.BrokenBarrierError:
            pass  # Another rank has ended; its error is the one.
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=of_rank, args=[r]) for r in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found
