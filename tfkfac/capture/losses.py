"""What the compiled losses are called with."""

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.capture import marker

_WATCH = "_tfkfac_watch"


@dataclasses.dataclass
class LossCall:
    """A call of one of the compiled losses: L = loss_weight * mean(w_n l_n).

    Attributes:
        loss: The loss.
        loss_weight: Its weight; None for 1.
        name: Of the output.
        y_true, y_pred, sample_weight: What it was called with.
    """

    loss: keras.losses.Loss
    loss_weight: float | None
    name: str | None
    y_true: tf.Tensor
    y_pred: tf.Tensor
    sample_weight: tf.Tensor | None


@dataclasses.dataclass
class LossGroup:
    """The losses of one call of `compute_loss`.

    Attributes:
        graph: The graph that it ran in; None when eager.
        calls: Of the losses, one for each output.
        outers: The calls of the model that returned what they were called
            with; none where it was made of what those returned.
    """

    graph: Any
    calls: list[LossCall] = dataclasses.field(default_factory=list)
    outers: list = dataclasses.field(default_factory=list)


class LossNotes:
    """Notes the calls of a model's compiled losses under a gradient tape.

    Args:
        model: The model, compiled or not.
        returning: Returns the calls of the model that returned a tensor.
    """

    def __init__(
        self,
        model: keras.Model,
        returning: Callable[[tf.Tensor], list] = lambda _: [],
    ):
        self._model, self._returning = model, returning
        self.groups: list[LossGroup] = []
        self.always = self._begins = False

    def watch(self) -> None:
        """Hears the losses that the model is compiled with now."""
        compile_loss = keras_compat.compiled_losses(self._model)
        if compile_loss is None:
            return
        watch = keras_compat.own_attribute(compile_loss, _WATCH)
        if watch is None:
            watch = _Watch(compile_loss)
            keras_compat.set_untracked(compile_loss, **{_WATCH: watch})
        watch.notes = weakref.ref(self)

    def begin(self) -> None:
        """Begins a group: the losses of one call of `compute_loss`."""
        self._begins = True

    def add(self, call: LossCall) -> None:
        """Adds a call of a loss to the group."""
        if not (self.always or marker.is_recording()):
            return
        if self._begins or not self.groups:
            graph = None
            if not tf.executing_eagerly():
                graph = tf.compat.v1.get_default_graph()
            self.groups.append(LossGroup(graph))
            self._begins = False
        self.groups[-1].calls.append(call)
        self.groups[-1].outers += self._returning(call.y_pred)

    def pop(self, wanted: Callable[[Any], bool]) -> list[LossGroup]:
        """Returns the groups of wanted graphs, and forgets all."""
        groups, self.groups = self.groups, []
        return [group for group in groups if wanted(group.graph)]

    def of(self, compute: Callable[[], Any]) -> list[LossCall]:
        """Returns the losses that `compute` calls, in no step of training."""
        self.watch()
        before, self.groups, self.always = self.groups, [], True
        try:
            compute()
            return [call for group in self.groups for call in group.calls]
        finally:
            self.groups, self.always = before, False


class _Watch:
    """Stands before the losses of a `CompileLoss`, for good."""

    def __init__(self, compile_loss):
        self.notes: Callable[[], LossNotes | None] = lambda: None
        call = compile_loss.call

        def call_noted(*args, **options):
            notes = self.notes()
            if notes is not None:
                notes.begin()
            return call(*args, **options)

        keras_compat.set_untracked(compile_loss, call=call_noted)
        if compile_loss.built:
            keras_compat.replace_losses(compile_loss, self._noting)
            return
        build = compile_loss.build

        def build_and_install(*args, **kwargs):
            build(*args, **kwargs)
            keras_compat.replace_losses(compile_loss, self._noting)

        keras_compat.set_untracked(compile_loss, build=build_and_install)

    def _noting(self, flat):
        loss = flat.loss

        def call(y_true, y_pred, sample_weight=None):
            notes = self.notes()
            if notes is not None:
                notes.add(
                    LossCall(
                        loss,
                        flat.loss_weights,
                        flat.name,
                        y_true,
                        y_pred,
                        sample_weight,
                    )
                )
            return loss(y_true, y_pred, sample_weight)

        return call
