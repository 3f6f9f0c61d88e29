"""A communicator that tells what it is asked for."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from tfkfac.distributed import communicator


class Counting:
    """Counts collectives and bytes at run time, and lists what was traced.

    Attributes:
        calls: The number of collectives that ran, a variable.
        sent: The bytes that this rank sent in them, a variable.
        traced: (method, arguments) of each collective in the traced graphs;
            tensors are given by (length, type).
    """

    def __init__(self, inner: communicator.Communicator):
        self._inner, self.rank, self.size = inner, inner.rank, inner.size
        self.traced: list[tuple] = []
        with tf.init_scope():
            self.calls = tf.Variable(0, dtype=tf.int64)
            self.sent = tf.Variable(0.0, dtype=tf.float64)

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def _count(self, elements, method, tensor, *arguments):
        self.calls.assign_add(1)
        self.sent.assign_add(elements * tensor.dtype.size)
        described = (tensor.shape[0], tensor.dtype)
        self.traced.append((getattr(self._inner, method), described, arguments))
        return getattr(self._inner, method)(tensor, *arguments)

    def all_reduce(self, tensor, name):
        n = self.size
        elements = 2 * (n - 1) / n * tensor.shape[0]
        return self._count(elements, "all_reduce", tensor, name)

    def all_to_all(self, tensor, lengths, name):
        elements = sum(lengths) - lengths[self.rank]
        return self._count(elements, "all_to_all", tensor, lengths, name)

    def all_gather(self, tensor, lengths, name):
        elements = (self.size - 1) * lengths[self.rank]
        return self._count(elements, "all_gather", tensor, lengths, name)

    def split(self, members):
        counted = Counting.__new__(Counting)
        counted.__dict__.update(self.__dict__)
        counted._inner = self._inner.split(members)
        counted.rank, counted.size = counted._inner.rank, counted._inner.size
        return counted


@contextlib.contextmanager
def counted(ranks: communicator.Communicator) -> Iterator[Counting]:
    """Has optimizers made in the context use a `Counting` of `ranks`."""
    original, counting = communicator.current, Counting(ranks)
    communicator.current = lambda: counting
    try:
        yield counting
    finally:
        communicator.current = original
