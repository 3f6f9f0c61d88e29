"""Collectives of one process, and what is asked of Horovod."""

import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from tfkfac.distributed import communicator


@pytest.fixture
def no_launcher(monkeypatch):
    for name in ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "horovod.tensorflow", raising=False)


@pytest.mark.usefixtures("no_launcher")
def test_one_process():
    for made in (communicator.init(), communicator.current()):
        assert (made.rank, made.size) == (0, 1)
        x = tf.constant([1.0, 2.0])
        np.testing.assert_array_equal(made.all_reduce(x, "n"), x)
        np.testing.assert_array_equal(made.all_to_all(x, [2], "n"), [x])
        np.testing.assert_array_equal(made.all_gather(x, [2], "n"), [x])
        assert made.gather_objects("a") == ["a"]
        assert made.broadcast_object("a") == "a"
        assert made.split([[0]]) is made


@pytest.mark.usefixtures("no_launcher")
@pytest.mark.parametrize("name", ["HOROVOD_SIZE", "PMI_SIZE"])
def test_several_processes_without_horovod(monkeypatch, name):
    monkeypatch.setenv(name, "2")
    with pytest.raises(RuntimeError, match="one of 2 processes: call tfkfac."):
        communicator.current()
    for variable in ("CHECK", "SHUTDOWN"):  # Which `init` may set.
        monkeypatch.setenv(f"HOROVOD_STALL_{variable}_TIME_SECONDS", "5")
    monkeypatch.setenv("HOROVOD_DYNAMIC_PROCESS_SETS", "1")
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", None)
    with pytest.raises(ImportError, match="tfkfac.build_horovod builds it"):
        communicator.init()


class Set:
    """A process set of a rank among others."""

    def __init__(self, ranks, rank):
        self.ranks, self._rank = ranks, rank

    def rank(self):
        return self.ranks.index(self._rank) if self.ranks else self._rank

    def size(self):
        return len(self.ranks) if self.ranks else 4


class Horovod:
    """Rank 1 of four that all give the same; notes what it is asked."""

    Sum = "sum"

    def __init__(self):
        self.global_process_set = Set([], 1)
        self.made, self.asked = [], []

    def add_process_set(self, ranks):
        self.made.append(ranks)
        return Set(ranks, 1)

    def allreduce(self, tensor, op, **options):
        self.asked.append(("allreduce", op, options))
        return options["process_set"].size() * tensor

    def alltoall(self, tensor, splits, **options):
        self.asked.append(("alltoall", splits, options))
        of_set = options["process_set"]
        own = tf.split(tensor, splits)[of_set.rank()]
        return tf.tile(own, [of_set.size()]), None

    def allgather(self, tensor, **options):
        return tf.constant([1.0, 2.0, 3.0, 4.0, 5.0])

    def broadcast(self, value, root_rank, **options):
        assert root_rank == 0
        self.asked.append((value.dtype, tuple(value.shape)))
        unsigned = tf.bitcast(value, tf.uint8)
        return tf.bitcast(unsigned + 1, value.dtype)  # Those of rank 0.

    def broadcast_object(self, value, root_rank, process_set):
        return value, root_rank


@pytest.fixture
def ranks(monkeypatch):
    monkeypatch.setattr(communicator, "_process_sets", {})
    monkeypatch.setattr(communicator.ending, "Ending", lambda meet: None)
    monkeypatch.setattr(communicator, "_eager", {})
    return communicator.HorovodCommunicator(Horovod())


def test_parts_are_those_of_the_rank(ranks):
    assert (ranks.rank, ranks.size) == (1, 4)
    x = tf.range(6.0)
    found = ranks.all_to_all(x, [1, 3, 0, 2], "n")
    np.testing.assert_array_equal(found, [[1, 2, 3]] * 4)
    np.testing.assert_array_equal(ranks.all_reduce(x, "n"), 4 * x)
    parts = ranks.all_gather(x[:1], [1, 0, 2, 2], "n")
    assert [p.numpy().tolist() for p in parts] == [[1], [], [2, 3], [4, 5]]


def test_names_are_those_that_are_given(ranks):
    """Branches have scopes of other numbers on other ranks."""
    ranks.all_reduce(tf.zeros([1]), "here")
    ranks.all_to_all(tf.zeros([4]), [1] * 4, "there")
    for (_, _, options), name in zip(ranks._hvd.asked, ("here", "there")):
        assert options["name"] == name and options["ignore_name_scope"]
    assert ranks._hvd.asked[0][1] == "sum"


def test_sets_of_ranks_are_made_once(ranks):
    """By all ranks, also those that are in another one."""
    for _ in range(2):
        part = ranks.split([range(0, 2), range(2, 4)])
        assert (part.rank, part.size) == (1, 2)
    assert ranks._hvd.made == [[0, 1], [2, 3]]
    across = ranks.split([range(0, 4, 2), range(1, 4, 2)])
    assert (across.rank, across.size) == (0, 2)
    assert across.broadcast_object("x") == ("x", 1)  # The first of the set.
    assert ranks.broadcast_object("x") == ("x", 0)
    assert ranks.split([range(4)]) is ranks


@pytest.mark.usefixtures("no_launcher")
@pytest.mark.parametrize("size", [1, 4])
def test_horovod_as_it_was_initialized(monkeypatch, size):
    hvd = Horovod()
    started = types.SimpleNamespace(
        is_initialized=lambda: True,
        size=lambda: size,
        global_process_set=hvd.global_process_set,
    )
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", started)
    found = communicator.current()
    assert (found.rank, found.size) == ((0, 1) if size == 1 else (1, 4))


@pytest.mark.parametrize(
    "dtype", [tf.float32, tf.bfloat16, tf.uint32, tf.complex64]
)
def test_variables_of_types_that_horovod_does_not_know(ranks, dtype):
    """Their bytes travel, so that nothing is rounded."""
    start = tf.cast([[1.0, 2.5, -3.0]], dtype)
    v, scalar = tf.Variable(start), tf.Variable(start[0, 0])
    ranks.broadcast_variables([v, scalar])
    for found, before in ((v, start), (scalar, start[0, 0])):
        np.testing.assert_array_equal(
            tf.bitcast(found, tf.uint8), tf.bitcast(before, tf.uint8) + 1
        )
    known = dtype == tf.float32
    assert {d for d, _ in ranks._hvd.asked} == {dtype if known else tf.uint8}
