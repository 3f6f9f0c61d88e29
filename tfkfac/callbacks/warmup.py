"""A learning rate that warms up with the number of ranks."""

import math

import keras
import numpy as np

from tfkfac import keras_compat
from tfkfac.distributed import communicator
from tfkfac.distributed.loss_scale import unwrapped


class LearningRateWarmup(keras.callbacks.Callback):
    """Raises the learning rate over the first epochs to that of the optimizer.

    From the N-th part, N the number of ranks, linearly in the batches, as
    `hvd.callbacks.LearningRateWarmupCallback` (Goyal et al. 2017). Within these
    epochs the rate is this callback's; from their end on it is left to others,
    as is one that another callback has assigned when they end. On one process
    it writes a given `learning_rate` alone.

    Args:
        epochs: How long.
        steps_per_epoch: The number of batches; None takes that of `fit`.
        learning_rate: Where to; None takes that of the optimizer as it is when
            this callback first sees the model.

    Raises:
        ValueError: An argument is out of its range, the optimizer's learning
            rate is a schedule, or the number of batches is not known.
    """

    def __init__(
        self,
        epochs: float = 5,
        steps_per_epoch: int | None = None,
        learning_rate: float | None = None,
    ):
        super().__init__()
        if not 0 < epochs < math.inf:
            raise ValueError(
                f"LearningRateWarmup(epochs={epochs!r}): must be greater than "
                "0 and finite; leave the callback out for none."
            )
        if learning_rate is not None and not 0 <= learning_rate < math.inf:
            raise ValueError(
                f"LearningRateWarmup(learning_rate={learning_rate!r}): must be "
                "at least 0 and finite."
            )
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self._target = learning_rate
        self._ranks = communicator.current().size
        self._writes = self._ranks > 1 or learning_rate is not None

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
        self._epoch, self._written, self._is_over = 0, None, not self._writes

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        if self._written is None:  # By the run that this one resumes.
            size = self.model.steps_per_execution
            last = (self._steps - 1) // size * size
            self._written = self._rate(epoch - 1 + last / self._steps)

    def on_train_batch_begin(self, batch, logs=None):
        if self._is_over:
            return
        optimizer = self.model.optimizer
        now = self._epoch + batch / self._steps
        self._is_over = now >= self.epochs
        rate = float(optimizer.learning_rate)
        if self._is_over and not np.isclose(rate, self._written, rtol=1e-6):
            return  # Another callback has assigned it.
        self._written = self._rate(now)
        optimizer.learning_rate = self._written

    def _rate(self, epochs):
        """Returns the rate after so many epochs."""
        done = min(epochs / self.epochs, 1)
        return self._target * (1 / self._ranks + (1 - 1 / self._ranks) * done)
