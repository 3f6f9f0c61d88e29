"""Callbacks for `fit`; on one process those for several do nothing."""

import contextlib
import json
import os
import pathlib

import keras
import numpy as np
import tensorflow as tf

from tfkfac.distributed import communicator, sync
from tfkfac.distributed.loss_scale import unwrapped
from tfkfac.optimizer import KFAC


class StopOnSkippedSteps(keras.callbacks.Callback):
    """Ends training after too many skipped updates in a row, under XLA too.

    A compiled step (`jit_compile=True`) drops the checks that other steps hold,
    of `KFAC(max_skipped_steps=...)` and of a state restored without its
    curvature; this callback makes them after every batch.

    Raises:
        RuntimeError: More than `max_skipped_steps` updates were skipped, or
            the curvature is of another update than the rest of the state.
    """

    def on_train_batch_end(self, batch, logs=None):
        optimizer = unwrapped(self.model.optimizer)
        in_a_row = int(optimizer.skips_in_a_row.numpy())
        if in_a_row > optimizer.max_skipped_steps:
            raise RuntimeError(
                f"KFAC skipped {in_a_row} updates in a row, more than "
                f"max_skipped_steps={optimizer.max_skipped_steps}: their "
                "gradients held NaN or infinity. Look for such values in the "
                "data, or lower the learning rate or raise the damping."
            )
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
        ValueError: `fit` takes several steps at once.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        super().__init__()
        self.movements: list[dict[str, float]] = []
        self._path = path
        self._moments, self._factors = {}, {}

    def on_train_begin(self, logs=None):
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


class Distributed(keras.callbacks.Callback):
    """What `fit` needs on several ranks; to be the first of the callbacks.

    - All ranks start with the weights and the optimizer state of rank 0 (as
      `hvd.callbacks.BroadcastGlobalVariablesCallback`).
    - Ranks with different numbers of batches are told so at the start, where
      Keras knows the number.
    - Metrics are averaged over the ranks at the end of an epoch, before the
      callbacks that follow read them (as `MetricAverageCallback`).
    - Moving statistics of batch normalization are averaged before evaluation
      and at the end of an epoch; the checkpoints below do so before they save.
    - The progress bar is that of rank 0.

    Raises:
        RuntimeError: The ranks have different models or numbers of batches.
    """

    def __init__(self):
        super().__init__()
        self._ranks = communicator.current()
        self._started = self._ranks.size == 1

    def set_params(self, params):
        super().set_params(params)
        if self._ranks.rank > 0:
            params["verbose"] = 0  # Read by those that follow.

    def on_train_begin(self, logs=None):
        own = {k: self.params.get(k) for k in ("steps", "epochs")}
        found = self._ranks.gather_objects(own)
        for rank, other in enumerate(found):
            if other != found[0]:
                raise RuntimeError(
                    f"Rank {rank} has {other['steps']} batches for "
                    f"{other['epochs']} epochs, and rank 0 has "
                    f"{found[0]['steps']} for {found[0]['epochs']}: give all "
                    "ranks the same number (drop_remainder, steps_per_epoch)."
                )
        self._start()

    def on_train_batch_end(self, batch, logs=None):
        self._start()  # A model that the first batch has built.

    def _start(self):
        if self._started or not self.model.built:
            return
        if not isinstance(unwrapped(self.model.optimizer), KFAC):
            sync.broadcast(self.model, self.model.optimizer, self._ranks)
        self._started = True

    def on_test_begin(self, logs=None):
        _average_statistics(self.model)

    def on_epoch_end(self, epoch, logs=None):
        _average_statistics(self.model)
        if not logs or self._ranks.size == 1:
            return
        numbers = {k: v for k, v in logs.items() if np.ndim(v) == 0}
        found = self._ranks.gather_objects(numbers)
        for key in numbers:
            values = [other[key] for other in found if key in other]
            logs[key] = float(np.mean(values))


class LearningRateWarmup(keras.callbacks.Callback):
    """Raises the learning rate over the first epochs to that of the optimizer.

    From the N-th part, N the number of ranks, linearly in the batches, as
    `hvd.callbacks.LearningRateWarmupCallback` (Goyal et al. 2017).

    Args:
        epochs: How long.
        steps_per_epoch: The number of batches; None takes that of `fit`.
        learning_rate: Where to; None takes that of the optimizer as it is when
            this callback first sees the model.

    Raises:
        ValueError: The optimizer's learning rate is a schedule, or the number
            of batches is not known.
    """

    def __init__(
        self,
        epochs: float = 5,
        steps_per_epoch: int | None = None,
        learning_rate: float | None = None,
    ):
        super().__init__()
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self._target = learning_rate
        self._ranks = communicator.current().size

    def set_model(self, model):
        super().set_model(model)
        # Before other callbacks restore a rate that was not warm yet.
        if self._target is None:
            self._target = float(model.optimizer.learning_rate)

    def on_train_begin(self, logs=None):
        optimizer = self.model.optimizer
        if not isinstance(unwrapped(optimizer)._learning_rate, keras.Variable):
            raise ValueError(
                "LearningRateWarmup needs a learning rate that is a number: a "
                "schedule, such as CosineDecay(warmup_target=...), warms up "
                "by itself."
            )
        self._steps = self.steps_per_epoch or self.params.get("steps")
        if not self._steps:
            raise ValueError(
                "LearningRateWarmup: the number of batches of an epoch is not "
                "known; give steps_per_epoch."
            )
        self._epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        done = (self._epoch + batch / self._steps) / self.epochs
        if self._epoch > self.epochs:
            return
        part = 1 / self._ranks + (1 - 1 / self._ranks) * min(done, 1)
        self.model.optimizer.learning_rate = self._target * part


class ModelCheckpoint(keras.callbacks.ModelCheckpoint):
    """Keras' `ModelCheckpoint`, written whole by rank 0 alone."""

    def _save_model(self, epoch, batch, logs):
        _gather(self.model)
        if communicator.current().rank == 0:
            with _whole_files(self.model):
                super()._save_model(epoch, batch, logs)


class BackupAndRestore(keras.callbacks.BackupAndRestore):
    """Keras' `BackupAndRestore`, written whole by rank 0 alone.

    All ranks restore from it: the folder must be one that all of them see. The
    states of seed generators, as of dropout, are each rank's own; on another
    number of ranks all but the first start with new ones.
    """

    def _load_model(self):
        if os.path.exists(self._training_metadata_path):
            metadata = json.loads(
                pathlib.Path(self._training_metadata_path).read_text()
            )
            self._weights_path = os.path.join(
                self.backup_dir, metadata["weights"]
            )
            ranks = communicator.current()
            seeds = sync.seeds(self.model)
            own = [v.numpy() for v in seeds]
            super()._load_model()
            saved = metadata["seeds"]
            if len(saved) == ranks.size or ranks.rank == 0:
                own = saved[ranks.rank]
            for v, value in zip(seeds, own):
                v.assign(value)

    def _save_model(self):
        _gather(self.model)
        seeds = communicator.current().gather_objects(
            [v.numpy().tolist() for v in sync.seeds(self.model)]
        )
        if communicator.current().rank > 0:
            return
        folder = pathlib.Path(self.backup_dir)
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {
            "epoch": self._current_epoch,
            "batch": self._last_batch_seen,
            "seeds": seeds,
        }
        metadata["weights"] = "{epoch}-{batch}.weights.h5".format(**metadata)
        with _whole_files(self.model):
            self.model.save_weights(folder / metadata["weights"])
        # From here on the new file counts, and the old ones can go.
        path = pathlib.Path(self._training_metadata_path)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(metadata))
        os.replace(part, path)
        for old in folder.glob("*.weights.h5"):
            if old.name != metadata["weights"]:
                old.unlink()

    def on_train_end(self, logs=None):
        communicator.current().gather_objects(None)  # All have restored.
        if communicator.current().rank == 0:
            super().on_train_end(logs)


def _average_statistics(model) -> None:
    """Gives all ranks the mean of the moving statistics."""
    ranks = communicator.current()
    if ranks.size == 1 or not model.built:
        return
    variables = [
        v
        for v in model.non_trainable_variables
        if keras.backend.is_float_dtype(v.dtype)
    ]
    found = ranks.gather_objects([v.numpy() for v in variables])
    for v, *values in zip(variables, *found):
        v.assign(np.mean(values, axis=0))


def _gather(model) -> None:
    """Makes the model on rank 0 what is to be saved."""
    _average_statistics(model)
    optimizer = unwrapped(model.optimizer)
    if isinstance(optimizer, KFAC):
        optimizer.gather_curvature()


@contextlib.contextmanager
def _whole_files(model):
    """Within it, what the model saves appears under its name when complete."""
    names = ("save", "save_weights")
    hidden = {n: model.__dict__[n] for n in names if n in model.__dict__}

    def whole(save):
        def save_whole(filepath, *args, **kwargs):
            path = pathlib.Path(filepath)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name("part." + path.name)
            try:
                save(part, *args, **{**kwargs, "overwrite": True})
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)

        return save_whole

    model.__dict__.update({n: whole(getattr(model, n)) for n in names})
    try:
        yield
    finally:
        for name in names:
            model.__dict__.pop(name)
        model.__dict__.update(hidden)
