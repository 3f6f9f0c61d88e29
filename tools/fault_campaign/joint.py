"""What several ranks do together in a fault, each in a process."""

import functools

import keras
import numpy as np

import tfkfac
from tools.fault_campaign import faults, processes, small

ANY = r"[Rr]ank [01]\b.*"  # Names a rank.


def on_ranks(count, refused=None, **more):
    """Adds the fault that a function of (ranks, folder) brings about."""

    def decorate(function):
        def of_rank(rank, folder):
            function(tfkfac.init(), folder)

        def inject(folder):
            of_folder = functools.partial(of_rank, folder=folder)
            endings = processes.ranks(count, of_folder, folder)
            processes.joint(endings, refused or "")

        name = function.__name__.replace("_", " ")
        faults.add("ranks", name, inject, refused=refused, long=True, **more)
        return function

    return decorate


def share(ranks, size=12):
    """Returns a rank's inputs and labels, `size` of each."""
    rng = np.random.default_rng(ranks.rank)
    return rng.normal(size=(size, 6)).astype("float32"), rng.integers(
        0, 3, size
    )


def fit(ranks, model, *callbacks, distributed=True, **more):
    """Trains on this rank's share in batches of 4: 3 an epoch."""
    first = [tfkfac.callbacks.Distributed()] if distributed else []
    data = share(ranks)
    more = {"batch_size": 4, "callbacks": [*first, *callbacks], **more}
    return small.fit(model, *data, **more)


def sgd(**more):
    """Returns the classifier with SGD that averages over the ranks."""
    return small.compiled(
        optimizer=tfkfac.distribute(keras.optimizers.SGD(0.1, **more))
    )


def models():
    """Returns it with K-FAC, and with SGD."""
    return small.compiled(), sgd()


def assert_equal(ranks, value) -> None:
    """Raises AssertionError where it is another on some rank."""
    first, *others = ranks.gather_objects(np.asarray(value))
    for other in others:
        np.testing.assert_array_equal(other, first)


class At(keras.callbacks.Callback):
    """Calls a function at the begin of an epoch."""

    def __init__(self, epoch, call):
        super().__init__()
        self._epoch, self._call = epoch, call

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self._epoch:
            self._call(self.model)


def of_one(refused=ANY, either=False, rank=1):
    """As `on_ranks`, of a function of (rank, whether it is the one)."""

    def decorate(function):
        def both(ranks, folder):
            model = function(ranks, folder, ranks.rank == rank)
            if model is not None:
                assert_equal(ranks, small.weights(model))

        both.__name__ = function.__name__
        return on_ranks(2, refused, either=either)(both)

    return decorate
