"""Callbacks for `fit` on several ranks, which do nothing on one."""

import keras
import numpy as np

from tfkfac import keras_compat
from tfkfac.distributed import communicator, sync
from tfkfac.distributed.loss_scale import unwrapped
from tfkfac.optimizer import KFAC


class Distributed(keras.callbacks.Callback):
    """What `fit` needs on several ranks; to be the first of the callbacks.

    - All ranks start with the weights and the optimizer state of rank 0 (as
      `hvd.callbacks.BroadcastGlobalVariablesCallback`).
    - Ranks with different numbers of batches are told so at the start, where
      Keras knows the number.
    - Metrics are averaged over the ranks at the end of an epoch, before the
      callbacks that follow read them (as `MetricAverageCallback`).
    - Moving statistics of batch normalization are averaged before evaluation
      and at the end of an epoch; `ModelCheckpoint` and `BackupAndRestore` do so
      before they save.
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
        average_statistics(self.model)

    def on_epoch_end(self, epoch, logs=None):
        average_statistics(self.model)
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
        if not keras_compat.has_constant_rate(unwrapped(optimizer)):
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


def average_statistics(model) -> None:
    """Gives all ranks the mean of the moving statistics.

    The mean of equal ones is as they are, bit for bit in float32.
    """
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
        v.assign(np.mean(values, axis=0, dtype="float64"))
