"""Collectives between ranks; the one module that imports Horovod."""

import abc
import functools
import io
import itertools
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfkfac.distributed import ending, roll_call

# What Horovod broadcasts.
_TYPES = {
    tf.bool, tf.uint8, tf.int8, tf.uint16, tf.int16, tf.int32, tf.int64,
    tf.float16, tf.float32, tf.float64,
}  # fmt: skip
_LAUNCHERS = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


class Communicator(abc.ABC):
    """Collectives over ranks 0 to `size` - 1.

    All ranks call the same ones in the same order. Tensors are float32 or
    wider, or float16, of rank 1. A name stands for one collective of a step
    and stays the same from step to step.

    Attributes:
        rank: Of this process.
        size: The number of ranks.
    """

    rank = 0
    size = 1

    @abc.abstractmethod
    def all_reduce(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        """Returns the sum over the ranks."""

    @abc.abstractmethod
    def all_to_all(
        self, tensor: tf.Tensor, lengths: Sequence[int], name: str
    ) -> tf.Tensor:
        """Sends the k-th part of `tensor` to rank k.

        Args:
            tensor: [sum of `lengths`], the parts one after the other.
            lengths: Those of the parts, the same on all ranks.

        Returns:
            [size, own length], what the ranks sent here.
        """

    @abc.abstractmethod
    def all_gather(
        self, tensor: tf.Tensor, lengths: Sequence[int], name: str
    ) -> list[tf.Tensor]:
        """Returns what each rank gave, of these lengths."""

    def gather_objects(
        self,
        value: Any,
        place: str = "in a gather of its own",
        name: str = "tfkfac.objects",
    ) -> list[Any]:
        """Returns what each rank gave, eagerly: any picklable object.

        Args:
            value: What this rank gives.
            place: Where this rank is in the program, with all that must be
                the same on all ranks.
            name: Of the collective. With that of another collective, ranks
                that wait for each other in the two are told at once.

        Raises:
            RanksError: The ranks are at different places, or one of them does
                not answer; the message names them.
        """
        try:
            found = self._gather((place, value), name)
        except tf.errors.OpError as error:
            raise self.explained(error, place) from error
        roll_call.require_same([of_rank for of_rank, _ in found])
        return [of_rank for _, of_rank in found]

    def explained(
        self, error: tf.errors.OpError, place: str
    ) -> roll_call.RanksError:
        """Returns what a failed collective means, when all ranks ask.

        Args:
            error: What it has raised.
            place: Where this rank is.
        """
        return roll_call.explained(
            error,
            self.rank,
            place,
            self.size,
            lambda place: self._gather(place, "tfkfac.places"),
        )

    @abc.abstractmethod
    def _gather(self, value: Any, name: str) -> list[Any]:
        """Returns what each rank gave."""

    @abc.abstractmethod
    def broadcast_object(self, value: Any) -> Any:
        """Returns what rank 0 gave, eagerly: any picklable object."""

    @abc.abstractmethod
    def broadcast_variables(self, variables: Sequence[tf.Variable]) -> None:
        """Assigns the values of rank 0, eagerly."""

    @abc.abstractmethod
    def split(self, members: Sequence[Sequence[int]]) -> "Communicator":
        """Returns that of the one of several disjoint sets with this rank."""


class Names:
    """The names of the collectives of one optimizer.

    They have its number, which is given when the first name is asked for: all
    ranks ask together then, and an optimizer that only some of them have made,
    and do not train with, takes none.
    """

    @functools.cached_property
    def _number(self) -> int:
        return next(_numbers)

    def of(self, collective: str) -> str:
        """Returns the name of a collective."""
        return f"tfkfac.{self._number}.{collective}"


class LocalCommunicator(Communicator):
    """One process."""

    def all_reduce(self, tensor, name):
        return tensor

    def all_to_all(self, tensor, lengths, name):
        return tensor[tf.newaxis]

    def all_gather(self, tensor, lengths, name):
        return [tensor]

    def _gather(self, value, name):
        return [value]

    def broadcast_object(self, value):
        return value

    def broadcast_variables(self, variables):
        pass

    def split(self, members):
        return self


class HorovodCommunicator(Communicator):
    """The ranks of a Horovod process set; by default all.

    Args:
        hvd: The module `horovod.tensorflow`, initialized.
        process_set: One that holds this rank.
    """

    def __init__(self, hvd, process_set=None):
        self._hvd = hvd
        self._set = process_set or hvd.global_process_set
        self.rank, self.size = self._set.rank(), self._set.size()

    def _run(
        self, collective: Callable, tensor: tf.Tensor, name: str, **options
    ):
        """Has Horovod run a collective under its name.

        In eager mode it would go by its kind alone.
        """
        # The scopes of branches have numbers that differ between ranks.
        run = functools.partial(
            collective,
            name=name,
            ignore_name_scope=True,
            process_set=self._set,
            **options,
        )
        if not tf.executing_eagerly():
            return run(tensor)
        key = collective, name, str(options), self._set
        if key not in _eager:
            _eager[key] = tf.function(run, reduce_retracing=True)
        return _eager[key](tensor)

    def all_reduce(self, tensor, name):
        return self._run(self._hvd.allreduce, tensor, name, op=self._hvd.Sum)

    def all_to_all(self, tensor, lengths, name):
        received, _ = self._run(
            self._hvd.alltoall, tensor, name, splits=list(lengths)
        )
        return tf.reshape(received, [self.size, lengths[self.rank]])

    def all_gather(self, tensor, lengths, name):
        joined = self._run(self._hvd.allgather, tensor, name)
        return tf.split(tf.reshape(joined, [sum(lengths)]), list(lengths))

    def _gather(self, value, name):
        own = np.frombuffer(pickle.dumps(value), np.uint8)
        with tf.device("CPU:0"):
            joined = self._run(self._hvd.allgather, tf.constant(own), name)
        file = io.BytesIO(joined.numpy().tobytes())
        return [pickle.load(file) for _ in range(self.size)]

    def broadcast_object(self, value):
        root = self._set.ranks[0] if self._set.ranks else 0
        return self._hvd.broadcast_object(
            value, root_rank=root, process_set=self._set
        )

    def broadcast_variables(self, variables):
        @tf.function
        def broadcast(values):
            # By place: the variables of a restored model have other names.
            return [
                self._hvd.broadcast(
                    value,
                    root_rank=0,
                    name=f"tfkfac.variable.{i}",
                    ignore_name_scope=True,
                    process_set=self._set,
                )
                for i, value in enumerate(values)
            ]

        values = [v.read_value() for v in variables]
        # Of types that Horovod does not know, bfloat16 say, the bytes travel.
        found = broadcast(
            [
                x if x.dtype in _TYPES else tf.bitcast(x, tf.uint8)
                for x in values
            ]
        )
        for v, value in zip(variables, found):
            known = value.dtype == v.dtype
            v.assign(value if known else tf.bitcast(value, v.dtype))

    def split(self, members):
        own = None
        for ranks in members:
            if len(ranks) == self.size:
                return self
            found = _process_set(self._hvd, tuple(ranks))
            if self.rank in ranks:
                own = HorovodCommunicator(self._hvd, found)
        return own


_numbers = itertools.count()
_process_sets: dict = {}
_eager: dict = {}  # The functions of eager collectives.


def _process_set(hvd, ranks: tuple[int, ...]):
    """Returns the process set of these ranks, made once."""
    if not _process_sets:
        every = HorovodCommunicator(hvd)
        ending.Ending(lambda: every.gather_objects(None, name="tfkfac.end"))
    if ranks not in _process_sets:
        _process_sets[ranks] = hvd.add_process_set(list(ranks))
    return _process_sets[ranks]


def init() -> Communicator:
    """Joins the processes that `horovodrun` has started.

    To be called at the start of a program, before TensorFlow uses a GPU: each
    process takes the GPU of its local rank. A rank that waits for another for
    more than 60 s ends with an error (`HOROVOD_STALL_SHUTDOWN_TIME_SECONDS`).
    Without `horovodrun` it does nothing.

    Returns:
        The communicator, with `rank`, the number of this process from 0 on, and
        `size`, the number of processes; 0 and 1 without `horovodrun`.

    Raises:
        ImportError: There are several processes, and Horovod is not installed.
    """
    if not any(int(os.environ.get(name, 1)) > 1 for name in _LAUNCHERS):
        return LocalCommunicator()
    os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", "10")
    os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "60")
    os.environ.setdefault("HOROVOD_DYNAMIC_PROCESS_SETS", "1")
    try:
        import horovod.tensorflow as hvd
    except ImportError as error:
        raise ImportError(
            "This is one of several processes, and Horovod is not installed "
            "for this TensorFlow: python -m tfkfac.build_horovod builds it."
        ) from error
    hvd.init()
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        own = gpus[hvd.local_rank() % len(gpus)]
        tf.config.set_visible_devices(own, "GPU")
        tf.config.experimental.set_memory_growth(own, True)
    return current()


def current() -> Communicator:
    """Returns the communicator of this process.

    Raises:
        RuntimeError: This is one of several processes, and `init` was not
            called.
    """
    hvd = sys.modules.get("horovod.tensorflow")
    if hvd is not None and hvd.is_initialized():
        if hvd.size() == 1:
            return LocalCommunicator()
        return HorovodCommunicator(hvd)
    for name in _LAUNCHERS:
        if int(os.environ.get(name, 1)) > 1:
            raise RuntimeError(
                f"This is one of {os.environ[name]} processes: call "
                "tfkfac.init() at the start of the program."
            )
    return LocalCommunicator()
