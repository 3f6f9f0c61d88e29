"""What the layers saw: inputs, pre-activations, and their gradients."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.common.variables import AutocastScope
from tensorflow.python.eager import record as tape_record

from tfkfac.blocks import CurvatureBlock, LayerCall

_ATTRIBUTE = "_tfkfac_capture"


@dataclasses.dataclass
class LossCall:
    """A call of one of the compiled losses: L = loss_weight * mean(w_n l_n)."""

    loss: keras.losses.Loss
    loss_weight: float | None
    y_true: tf.Tensor
    y_pred: tf.Tensor
    sample_weight: tf.Tensor | None


@dataclasses.dataclass
class Record:
    """One recorded call of the model.

    Attributes:
        graph: The graph that it ran in; None when eager.
        outputs: The flat outputs.
        tape: Leads from the outputs to the pre-activations.
        uses: The calls of layers, in order.
        losses: What the compiled losses were called with.
        state: (variable, value at entry) of the non-trainable variables.
    """

    graph: Any
    outputs: list = dataclasses.field(default_factory=list)
    tape: Any = None
    uses: list[LayerCall] = dataclasses.field(default_factory=list)
    losses: list[LossCall] = dataclasses.field(default_factory=list)
    state: list = dataclasses.field(default_factory=list)


def _current_graph():
    if tf.executing_eagerly():
        return None
    return tf.compat.v1.get_default_graph()


def _is_within(graph, outer) -> bool:
    """Whether `graph` is `outer` or a branch of it."""
    if outer is None:
        return graph is None
    while graph is not None and graph is not outer:
        graph = getattr(graph, "outer_graph", None)
    return graph is outer


class Capture:
    """Records the calls of a model and of its layers during training.

    A call of the model is recorded when `training` is not False and a gradient
    tape is active. `model.call` is wrapped for good; the layers are wrapped
    within a recorded call and restored at its end.

    Args:
        model: The model.
        wants: Returns the type of block that records the calls of a layer,
            None for layers that are not recorded.
        before: Called on entering a call to be recorded; returns whether to
            record it.
        keep_gradients: Whether to keep the gradients of the training loss with
            respect to the pre-activations, as the tape of the training step
            computes them.
    """

    def __init__(
        self,
        model: keras.Model,
        wants: Callable[[keras.layers.Layer], type[CurvatureBlock] | None],
        before: Callable[[], bool],
        keep_gradients: bool,
    ):
        self.model = model
        self.wants = wants
        self.before = before
        self.keep_gradients = keep_gradients
        self.unusable: dict[int, str] = {}
        self.records: list[Record] = []
        self._recording: Record | None = None
        self._observe: Callable | None = None
        self._taken: list[Record] = []
        previous = Capture.of(model)
        original = previous.original_call if previous else model.call
        self.original_call = original

        @functools.wraps(original)
        def call(*args, **kwargs):
            if not (self._is_recorded(kwargs) and self._prepare()):
                return original(*args, **kwargs)
            return self._record(args, kwargs)

        self._watch_train_step()
        model.__dict__["call"] = tf.autograph.experimental.do_not_convert(call)
        model.__dict__[_ATTRIBUTE] = self

    def _watch_train_step(self):
        """Notes when Keras' own training step runs, which is known."""
        model = self.model
        self.in_train_step = False
        stock = keras.Model
        if (
            type(model).train_step is not stock.train_step
            or type(model).compute_loss is not stock.compute_loss
        ):
            return

        def train_step(data):
            self.in_train_step = True
            try:
                return stock.train_step(model, data)
            finally:
                self.in_train_step = False

        model.__dict__["train_step"] = train_step

    @staticmethod
    def of(model: keras.Model) -> "Capture | None":
        """Returns the capture that the model's calls come to."""
        return model.__dict__.get(_ATTRIBUTE)

    @property
    def active(self) -> bool:
        """Whether the model's calls still come here."""
        return Capture.of(self.model) is self

    def _is_recorded(self, kwargs) -> bool:
        if in_stateless_scope() or not tape_record.could_possibly_record():
            return False
        training = kwargs.get("training")
        if training is None:
            training = self.model._get_call_context().get_value("training")
        return training is not False and self._recording is None

    def _prepare(self) -> bool:
        with AutocastScope(None):  # In a call variables look half as wide.
            return self.before()

    def _record(self, args, kwargs):
        record = Record(_current_graph())
        with AutocastScope(None):
            record.state = [
                (v, tf.identity(v.value))
                for v in self.model.non_trainable_variables
            ]
        self._watch_losses()
        self._recording = record
        try:
            record.tape = tf.GradientTape(persistent=True)
            with self._wrapped_layers(), record.tape:
                outputs = self.original_call(*args, **kwargs)
        finally:
            self._recording = None
        record.outputs = keras.tree.flatten(outputs)
        self.records = [
            r for r in self.records if _is_within(record.graph, r.graph)
        ]
        self.records.append(record)
        return outputs

    @contextlib.contextmanager
    def _wrapped_layers(self):
        layers = []
        for layer in self.model._flatten_layers():
            block_type = self.wants(layer)
            if block_type is not None:
                layers.append((layer, layer.__dict__.get("call")))
                layer.__dict__["call"] = self._layer_call(
                    layer, layer.call, block_type
                )
        try:
            yield
        finally:
            for layer, own_call in layers:
                layer.__dict__.pop("call", None)
                if own_call is not None:
                    layer.__dict__["call"] = own_call

    def _layer_call(self, layer, original, block_type):
        @functools.wraps(original)
        def call(inputs, *args, **kwargs):
            record = self._recording
            if record is None:  # Called again by a backward pass.
                return original(inputs, *args, **kwargs)
            if isinstance(inputs, tf.SparseTensor):
                self.unusable[id(layer)] = "its inputs are sparse"
                return original(inputs, *args, **kwargs)
            if _current_graph() is not record.graph:
                self.unusable[id(layer)] = (
                    "called inside a while loop, a tf.function of its own or a "
                    "rematerialized scope"
                )
                return original(inputs, *args, **kwargs)
            return block_type.record(
                layer, original, self._keep, inputs, args, kwargs
            )

        return tf.autograph.experimental.do_not_convert(call)

    def _keep(self, use: LayerCall) -> tf.Tensor:
        """Adds a use to the record; returns its pre-activation."""
        use.pre_activation = self._watch_gradient(use, use.pre_activation)
        self._recording.uses.append(use)
        return use.pre_activation

    def _watch_gradient(self, use, s):
        """Returns s, and looks at the gradients that come back through it.

        With a shortcut, the gradients of the statistics go on to the inputs of
        the layer, and not through what it did.
        """
        shortcut = use.shortcut

        @tf.custom_gradient
        def identity(x, *inputs):
            def backward(gradient):
                if self._observe is None:
                    if self.keep_gradients:
                        use.gradient = gradient
                    return (gradient, *[None for _ in inputs])
                use.gradient = gradient
                with tf.control_dependencies(self._observe(use)):
                    gradient = tf.identity(gradient)
                    if shortcut is None:
                        return gradient
                    return None, shortcut.input_gradient(gradient)

            return tf.identity(x), backward

        return identity(s) if shortcut is None else identity(s, use.inputs)

    def _watch_losses(self):
        """Makes the compiled losses note what they are called with."""
        compile_loss = self.model._compile_loss
        if compile_loss is None:
            return
        watched = compile_loss.__dict__.get(_ATTRIBUTE)
        if watched is not None:
            watched.capture = self
        else:
            compile_loss.__dict__[_ATTRIBUTE] = _LossWatch(self, compile_loss)

    def note_loss(self, call: LossCall) -> None:
        """Adds a call of a loss to the record that its `y_pred` is of."""
        for record in self.records:
            if any(call.y_pred is x for x in record.outputs):
                record.losses.append(call)

    def note_losses(
        self, outputs: Sequence[tf.Tensor], compute: Callable[[], Any]
    ) -> Record:
        """Returns a record of outputs, with the losses called by `compute`.

        Of a call that is no step of training.

        Args:
            outputs: The flat outputs of a call of the model.
            compute: Calls the compiled losses with them.
        """
        self._watch_losses()
        record, records = Record(_current_graph(), list(outputs)), self.records
        self.records = [record]
        try:
            compute()
        finally:
            self.records = records
        return record

    def take(self) -> list[Record]:
        """Returns the records of the current step, and forgets them all."""
        graph = _current_graph()
        records = [r for r in self.records if _is_within(graph, r.graph)]
        self.records = []
        self._taken = records or self._taken
        return records

    def undo_forward_pass(self) -> None:
        """Restores the non-trainable variables seen at the step's entry."""
        self.take()
        for variable, value in self._taken[0].state:
            variable.assign(value)

    @contextlib.contextmanager
    def own_backward(self, observe: Callable[[LayerCall], list[tf.Tensor]]):
        """Within it, gradients that come back are those of the statistics.

        Args:
            observe: Called with a use when its gradient is known; returns what
                the backward pass has to wait for.
        """
        self._observe = observe
        try:
            yield
        finally:
            self._observe = None


class _LossWatch:
    """Stands before the losses of a `CompileLoss`, for good."""

    def __init__(self, capture: Capture, compile_loss):
        self.capture = capture
        if compile_loss.built:
            self._install(compile_loss)
            return
        build = compile_loss.build

        def build_and_install(*args, **kwargs):
            build(*args, **kwargs)
            self._install(compile_loss)

        compile_loss.__dict__["build"] = build_and_install

    def _install(self, compile_loss):
        compile_loss._flat_losses = [
            x._replace(loss=self._noting(x.loss, x.loss_weights))
            for x in compile_loss._flat_losses
        ]

    def _noting(self, loss, loss_weight):
        def call(y_true, y_pred, sample_weight=None):
            self.capture.note_loss(
                LossCall(loss, loss_weight, y_true, y_pred, sample_weight)
            )
            return loss(y_true, y_pred, sample_weight)

        return call
