"""Callbacks for `fit` on several ranks, which do nothing on one."""

import keras
import numpy as np
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.distributed import (
    agreement,
    communicator,
    loss_scale,
    metrics,
    packing,
    sync,
)
from tfkfac.distributed.loss_scale import unwrapped
from tfkfac.distributed.roll_call import RanksError
from tfkfac.optimizer import KFAC

_ROUNDING = 1e-3  # How far weights may be apart, of the largest of a variable.


class Distributed(keras.callbacks.Callback):
    """What `fit` needs on several ranks; to be the first of the callbacks.

    - All ranks start each `fit` with the weights and the optimizer state of
      rank 0 (as `hvd.callbacks.BroadcastGlobalVariablesCallback`).
    - Metrics are those of all ranks together, sums by counts, for all callbacks
      and for what `evaluate` returns (as `MetricAverageCallback`).
    - Moving statistics of batch normalization are averaged before evaluation
      and at the end of an epoch; `ModelCheckpoint` and `BackupAndRestore` do so
      before they save.
    - Ranks that do not do the same, such as when one of them stops, are told so
      at once, all of them, in place of waiting for each other.
    - The progress bar is that of rank 0.

    Raises:
        ValueError: The optimizer averages no gradients.
        RanksError: The ranks are at different places, have other weights, or
            one does not answer. It is a RuntimeError.
        RuntimeError: The ranks have different models.
    """

    def __init__(self):
        super().__init__()
        self._ranks = communicator.current()
        self._has_shared = self._trains = self._evaluates = False
        self._is_in_epoch = False
        self._step = self._outer = None
        self._epoch: int | None = None
        self._batches = 0

    def set_params(self, params):
        super().set_params(params)
        if self._ranks.rank > 0:
            params["verbose"] = 0  # Read by those that follow.

    # Where this rank is.

    def on_train_begin(self, logs=None):
        if self._ranks.size == 1:
            return
        _require_averaging(self.model)
        self._has_shared, self._epoch = False, None
        self._trains = True
        self._watch()

    def on_epoch_begin(self, epoch, logs=None):
        is_first, self._epoch, self._batches = self._epoch is None, epoch, 0
        self._is_in_epoch = True
        if is_first and self._ranks.size > 1:
            # Here, since others may have restored a state when it began.
            steps, epochs = (self.params.get(k) for k in ("steps", "epochs"))
            place = f"at the beginning of epoch {epoch + 1} of {epochs}"
            gather(self.model, None, f"{place}, with {steps} batches in each")
            self._share()
            self._watch_steps()  # Others may have made them anew till now.

    def on_train_batch_begin(self, batch, logs=None):
        self._batches = batch

    def on_train_batch_end(self, batch, logs=None):
        self._batches = batch + 1
        if not self._has_shared and self._ranks.size > 1:
            self._share()  # A model that the first batch has built.

    def on_epoch_end(self, epoch, logs=None):
        self._is_in_epoch = False

    def on_test_begin(self, logs=None):
        self._evaluates, self._is_in_epoch = True, False
        if self._ranks.size > 1:
            if not self._trains:  # That of `fit`, whose callback evaluates.
                self._outer = keras_compat.own_attribute(
                    self.model, keras_compat.RESULTS
                )
            self._watch()
        average_statistics(self.model, f"at the beginning of {self._test()}")

    def on_test_end(self, logs=None):
        self._evaluates = False
        if self._trains:
            return
        self._unwatch()
        if self._outer is not None:
            keras_compat.set_untracked(
                self.model, **{keras_compat.RESULTS: self._outer}
            )

    def on_train_end(self, logs=None):
        if self._ranks.size == 1:
            return
        place = "at the end of training, "
        if self._epoch is None:
            place += "without an epoch"
        else:
            place += f"after epoch {self._epoch + 1}{self._stop()}"
        gather(self.model, None, place)
        self._unwatch()

    def _test(self):
        within = f" in epoch {self._epoch + 1}" if self._trains else ""
        return f"an evaluation{within}"

    def _stop(self):
        is_set = getattr(self.model, "stop_training", False)
        return ", where its stop_training is set" if is_set else ""

    # What it does there.

    def _share(self):
        """Gives all ranks the state of rank 0."""
        if not self.model.built:
            return
        inner = unwrapped(self.model.optimizer)
        if isinstance(inner, KFAC):
            inner.require_attached().share_initial_state(again=True)
        else:
            sync.broadcast(self.model, self.model.optimizer, self._ranks)
        self._has_shared = True

    def _watch(self):
        """Has Keras' logs go through this callback."""
        keras_compat.set_untracked(
            self.model, **{keras_compat.RESULTS: self._results}
        )

    def _watch_steps(self):
        function = self.model.train_function
        self._step = getattr(function, "watched", function)
        self.model.train_function = self._watched(self._step)

    def _unwatch(self):
        if keras_compat.own_attribute(self.model, keras_compat.RESULTS):
            keras_compat.remove_attribute(self.model, keras_compat.RESULTS)
        self._trains = False
        if self._step is not None:
            self.model.train_function, self._step = self._step, None

    def _watched(self, step):
        def watched(iterator):
            try:
                return step(iterator)
            except (StopIteration, tf.errors.OutOfRangeError):
                raise  # The epoch has ended.
            except BaseException as error:
                self._unwatch()
                place = f"in batch {self._batches + 1} of epoch"
                meaning = self._meaning(error, f"{place} {self._epoch + 1}")
                if meaning is None:
                    raise
                raise meaning from error

        watched.watched = step
        return watched

    def _meaning(self, error, place):
        """Returns what an error of a step says of the ranks; None: nothing."""
        if not isinstance(error, tf.errors.OpError):
            return None
        if said := agreement.sentence(error):
            return RanksError(said)
        if any(word in str(error) for word in ("Horovod", "Mismatched")):
            return self._ranks.explained(error, place)
        return None

    def _results(self, logs):
        """Returns the logs of an epoch or an evaluation, of all ranks."""
        own = getattr(type(self.model), keras_compat.RESULTS)
        if self._evaluates:
            place = f"at the end of {self._test()}"
        elif not self._is_in_epoch:
            return own(self.model, logs)  # Of `evaluate` in a callback.
        else:
            place = f"at the end of epoch {self._epoch + 1}, after "
            place += f"{self._batches} batches{self._stop()}"
            require_same_weights(self.model, place)
            average_statistics(self.model, place)
        return metrics.over_ranks(
            self.model,
            lambda logs: own(self.model, logs),
            logs,
            lambda value: gather(self.model, value, place),
        )


def gather(model: keras.Model, value, place: str) -> list:
    """Returns what each rank gives; ranks that are in a step are met, too.

    Args:
        model: The model that is trained.
        value: What this rank gives.
        place: Where it is, with all that must be the same there.

    Raises:
        RanksError: The ranks are at different places.
    """
    name = sync.first_collective(model.optimizer)
    return communicator.current().gather_objects(value, place, name)


def average_statistics(
    model: keras.Model, place: str = "averaging the moving statistics"
) -> None:
    """Gives all ranks the mean of the moving statistics.

    These are the variables that layers have made not to be trained. Those that
    are equal on all ranks are left as they are, and are not sent. An element
    that is equal on all keeps its bits, in types below float64.

    Args:
        model: The model.
        place: Where this rank is; as of `gather`.
    """
    ranks = communicator.current()
    if ranks.size == 1 or not model.built:
        return
    variables = sync.statistics(model)
    differ = sync.differing(gather(model, sync.digests(variables), place))
    if not differ:
        return
    values = [keras_compat.tensorflow_variable(variables[i]) for i in differ]
    total = ranks.all_reduce(
        packing.flatten(values, tf.float64), "tfkfac.moving_statistics"
    )
    means = packing.unflatten(total / ranks.size, values)
    for value, mean in zip(values, means):
        value.assign(tf.cast(mean, value.dtype))


def require_same_weights(model: keras.Model, place: str) -> None:
    """Raises RanksError where the ranks have trained other weights.

    Where they are apart by rounding alone, they become those of rank 0.
    """
    ranks = communicator.current()
    variables = sync.alike(model)
    differ = sync.differing(gather(model, sync.digests(variables), place))
    if not differ:
        return
    variables = [variables[i] for i in differ]
    first = ranks.broadcast_object([v.numpy() for v in variables])
    near = [_is_near(v.numpy(), value) for v, value in zip(variables, first)]
    for rank, of_rank in enumerate(gather(model, near, place)):
        if not all(of_rank):
            path = variables[of_rank.index(False)].path
            raise RanksError(
                f"Rank {rank} has other weights than rank 0 {place}, such as "
                f"{path!r}: either its gradients are not averaged, for which "
                "there is tfkfac.distribute(optimizer), or something has "
                "assigned them on one rank alone."
            )
    for v, value in zip(variables, first):
        v.assign(value)


def _is_near(value, other):
    scale = np.max(np.abs(np.nan_to_num(other)), initial=0)
    return np.allclose(value, other, 0, _ROUNDING * scale, equal_nan=True)


def _require_averaging(model):
    """Raises ValueError where each rank would train a model of its own.

    What a training step or an optimizer of one's own does is not known here;
    `require_same_weights` sees it.
    """
    outer = model.optimizer
    inner = unwrapped(outer)
    if isinstance(inner, KFAC):
        return
    own = keras_compat.own_attribute
    if own(inner, keras_compat.CLIPPING) is not None:
        if outer is not inner:
            loss_scale.require_agreement(outer)
    elif (
        own(model, "train_step") is None
        and type(model).train_step is keras.Model.train_step
        and type(inner).apply is keras.optimizers.Optimizer.apply
    ):
        raise ValueError(
            f"The optimizer {type(inner).__name__} averages no gradients, so "
            "that each rank would train a model of its own: compile the model "
            "with tfkfac.distribute(optimizer), after load_model, too."
        )
