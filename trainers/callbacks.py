"""Callbacks of `fit` that the trainers need."""

import math
import signal
import time
from collections.abc import Callable

import keras

import tfkfac
from tfkfac.distributed.loss_scale import unwrapped
from trainers import checkpoints

_PACE = 0.5  # Seconds between the questions whether to stop.


class OfRun(keras.callbacks.Callback):
    """Makes one of several calls of `fit` a part of the run.

    Args:
        parts: The number of calls, for the progress bar.
        own: What this rank had for itself when the run was interrupted: moving
            statistics, metrics of the part that was begun, seeds; None: this
            is no resumed run.
    """

    def __init__(self, parts: int, own: list | None = None):
        super().__init__()
        self._parts, self._own = parts, own

    def set_params(self, params):
        super().set_params(params)
        params["epochs"] = self._parts  # Read by those that follow.

    def on_epoch_begin(self, epoch, logs=None):
        if self._own is None:
            return
        optimizer = unwrapped(self.model.optimizer)
        if isinstance(optimizer, tfkfac.KFAC):
            # Before what is each rank's own, not within the first step.
            optimizer.require_attached().share_initial_state()
        checkpoints.assign_own(self.model, self._own)


class Interruption(keras.callbacks.Callback):
    """Ends a run in order on Ctrl-C, or when the launcher ends it.

    Within the context, the first SIGINT or SIGTERM is noted, and after the next
    update the ranks agree to stop and call `save`; a second one ends the
    process at once. The ranks ask each other about twice a second (`_PACE`).

    Args:
        ranks: A `tfkfac.distributed.communicator.Communicator`.
        save: Called on all ranks after the same update, with the steps that
            this call of `fit` has taken.
        micro_steps: The steps in an update.

    Attributes:
        requested: Whether this rank has had a signal.
        stopped: Whether the ranks have stopped.
        save_at: The step of this call of `fit` at which to save in any case.
    """

    def __init__(
        self, ranks, save: Callable[[int], None], micro_steps: int = 1
    ):
        super().__init__()
        self._micro_steps = micro_steps
        self.requested = self.stopped = False
        self.save_at: int | None = None
        self._ranks, self._save = ranks, save
        self._since, self._count, self._wait = time.monotonic(), 0, 1

    def __enter__(self):
        self._former = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *error):
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self.requested = True
        self.__exit__()

    def on_train_batch_end(self, batch, logs=None):
        if self.save_at is not None and batch + 1 >= self.save_at:
            self._save(self.save_at)
            return
        self._count += 1
        between = (batch + 1) % self._micro_steps == 0
        if not between or self._ranks.size > 1 and self._count < self._wait:
            return
        seconds = time.monotonic() - self._since
        found = self._ranks.gather_objects((self.requested, seconds))
        # The same on all ranks: when they ask each other again.
        pace = max(seconds for _, seconds in found) / self._count
        self._wait = max(1, int(_PACE / pace))
        self._since, self._count = time.monotonic(), 0
        if any(requested for requested, _ in found):
            self.stopped = True
            self._save(batch + 1)
            self.model.stop_training = True


class StopOnNaN(keras.callbacks.Callback):
    """Ends a run that has diverged, on all ranks at once.

    On one process after the batch; on several at the end of the epoch, when
    their losses have been averaged.

    Args:
        ranks: A `tfkfac.distributed.communicator.Communicator`.
    """

    def __init__(self, ranks):
        super().__init__()
        self._ranks = ranks

    def on_train_batch_end(self, batch, logs=None):
        if self._ranks.size == 1:
            self._check(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._check(logs)

    def _check(self, logs):
        if not math.isfinite(logs["loss"]):
            self.model.stop_training = True


class StepLosses(keras.callbacks.Callback):
    """Collects the loss of each training step.

    Keras logs the mean over the epoch so far, weighted by the batches, which
    are of one size here; the sum's growth is the last batch's loss.

    Attributes:
        values: The losses.
    """

    def __init__(self):
        super().__init__()
        self.values = []
        self._sum = 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self._sum = 0.0

    def on_train_batch_end(self, batch, logs=None):
        total = float(logs["loss"]) * (batch + 1)
        self.values.append(total - self._sum)
        self._sum = total
