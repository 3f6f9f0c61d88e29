"""Callbacks for `fit` that watch the updates of a `KFAC`."""

import json
import os

import keras
import numpy as np
import tensorflow as tf

from tfkfac.distributed.loss_scale import unwrapped
from tfkfac.optimizer import KFAC
from tfkfac.step import too_many_skipped


def kfac_of(model: keras.Model, callback: str) -> KFAC:
    """Returns the `KFAC` of a model; raises TypeError for another optimizer."""
    optimizer = unwrapped(model.optimizer)
    if not isinstance(optimizer, KFAC):
        raise TypeError(
            f"{callback} watches tfkfac.KFAC; the model is compiled with "
            f"{type(optimizer).__name__}: leave the callback out."
        )
    return optimizer


class StopOnSkippedSteps(keras.callbacks.Callback):
    """Ends training after too many skipped updates in a row, under XLA too.

    A compiled step (`jit_compile=True`) drops the checks that other steps hold,
    of `KFAC(max_skipped_steps=...)` and of a state restored without its
    curvature; this callback makes them after every batch.

    Raises:
        RuntimeError: More than `max_skipped_steps` updates were skipped, or
            the curvature is of another update than the rest of the state.
        TypeError: The model is compiled with another optimizer.
    """

    def on_train_begin(self, logs=None):
        kfac_of(self.model, "StopOnSkippedSteps")

    def on_train_batch_end(self, batch, logs=None):
        optimizer = unwrapped(self.model.optimizer)
        limit = optimizer.max_skipped_steps
        if int(optimizer.skips_in_a_row) > limit:
            raise RuntimeError(too_many_skipped(limit))
        optimizer.curvature.require_of(lambda: optimizer.updates)


class FactorMovement(keras.callbacks.Callback):
    """How far the factors of a mini-batch are from those of the one before.

        |X(t) - X(t-1)| / |X(t-1)|        (Osawa et al. 2019, eq. 19)

    with X the factor of the mini-batch alone, before the running average, and
    Frobenius norms; for each factor that this rank owns, at each update of the
    factors but the first. It reads all factors after every batch.

    Args:
        path: Where to append a JSON line for each; None for nowhere.

    Attributes:
        movements: A dictionary for each: "update", t, and the movement by the
            name of the factor, such as "hidden/input_factor".

    Raises:
        TypeError: The model is compiled with another optimizer.
        ValueError: `fit` takes several steps at once.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        super().__init__()
        self.movements: list[dict[str, float]] = []
        self._path = path
        self._moments: dict[str, np.ndarray] = {}
        self._factors: dict[str, np.ndarray] = {}

    def on_train_begin(self, logs=None):
        kfac_of(self.model, "FactorMovement")
        if self.model.steps_per_execution > 1:
            raise ValueError(
                "FactorMovement needs steps_per_execution=1: it sees the "
                "factors between the calls alone."
            )

    def on_train_batch_begin(self, batch, logs=None):
        optimizer = unwrapped(self.model.optimizer)
        self._update = int(optimizer.updates)
        self._decay = float(optimizer.at_update("factor_decay", tf.float64))

    def on_train_batch_end(self, batch, logs=None):
        optimizer = unwrapped(self.model.optimizer)
        if int(optimizer.updates) == self._update:
            return  # A micro-step, or a skipped step.
        found = {}
        for name, moment in optimizer.moments().items():
            before = self._moments.get(name, np.zeros_like(moment))
            if np.array_equal(moment, before):
                continue
            X = (moment - self._decay * before) / (1 - self._decay)
            last = self._factors.get(name)
            if last is not None:
                moved = np.linalg.norm(X - last) / np.linalg.norm(last)
                found[name] = float(moved)
            self._moments[name], self._factors[name] = moment, X
        if found:
            self.movements.append({"update": self._update, **found})
            if self._path is not None:
                with open(self._path, "a") as file:
                    file.write(json.dumps(self.movements[-1]) + "\n")
