"""Records the calls of layers under a gradient tape, and of the losses."""

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator

import keras
import tensorflow as tf
from absl import logging

from tfkfac import keras_compat
from tfkfac.blocks import LayerCall, Recording
from tfkfac.capture import losses, marker, masks, reads, records
from tfkfac.capture.records import (
    Arrival,
    OuterCall,
    Recorded,
    current_graph,
    first_tensor,
    is_within,
    keys,
)


class Recorder:
    """Hears the calls of a model's layers during training.

    A call of a layer with a block is recorded when a gradient tape is active
    and `training` is not False, whoever calls it.

    Args:
        model: The model.
        wants: Returns what records the calls of a layer, None for layers that
            are not recorded.
        before: Called before the model or a part of it is called; returns
            whether the call is to be recorded.
    """

    def __init__(
        self,
        model: keras.Model,
        wants: Callable[[keras.layers.Layer], Recording | None],
        before: Callable[[], bool],
    ):
        self.model, self.wants, self._before = model, wants, before
        self.unusable: dict[int, str] = {}
        self.deaf = self.retired = False
        self.calls: list[Recorded] = []
        self._bare: list[OuterCall] = []  # Those with no recorded call.
        self.reads = reads.OutsideReads()
        self.losses = losses.LossNotes(model, self._returning)
        self.tape: marker.OwnTape | None = None
        self._tape_is_stale = False
        self._outer: OuterCall | None = None
        self._restorable: list = []
        self._watched: weakref.WeakSet = weakref.WeakSet()
        self._said: set[str] = set()
        self.watch()

    def watch(self) -> None:
        """Hears all layers that the model has now, and its compiled losses."""
        for layer in keras_compat.layers_of(self.model):
            if layer not in self._watched:  # A `call` set since then stays.
                _recorders_of(layer).add(self)
                self._watched.add(layer)
        self.losses.watch()

    def release(self) -> None:
        """Hears nothing any more; layers that none hears are as they were."""
        self.retired = True
        for layer in self._watched:
            call = keras_compat.own_attribute(layer, "call")
            recorders = getattr(call, "recorders", None)
            if recorders is None:
                continue
            recorders.discard(self)
            if not recorders:
                keras_compat.remove_attribute(layer, "call")
                keras_compat.set_untracked(layer, **call.before)

    def warn_once(self, message: str) -> None:
        """Says what a user should know of the model, once."""
        if message not in self._said:
            self._said.add(message)
            logging.warning("%r: %s", self.model.name, message)

    # While the model runs.

    def hears(self, layer: keras.layers.Layer, options: dict) -> bool:
        """Whether a call of a layer is one of a training step."""
        if self.deaf or self.retired or keras_compat.in_stateless_scope():
            return False
        if not marker.is_recording():
            if self.tape is not None:
                self.tape.pause()
            return False
        if self._outer is not None:
            return True
        training = options.get("training")
        if training is None:
            training = keras_compat.training_of_context(layer)
        if training is False:
            return False
        # In a call variables look half as wide.
        with keras_compat.full_width():
            return self._before()

    @contextlib.contextmanager
    def inside(self, layer, arguments) -> Iterator[list]:
        """Within it, calls belong to that of `layer`, unless it has an outer
        one; what is added to the list is taken for its outputs."""
        if self._outer is not None:
            yield []
            return
        self.watch()
        outer = OuterCall(layer, current_graph(), first_tensor(arguments))
        with keras_compat.full_width():
            outer.state = [
                (v, tf.identity(v.value)) for v in layer.non_trainable_variables
            ]
        self.calls = self._within(outer.graph)
        if outer.graph is None:
            self._record_outputs()
        self._outer = outer
        try:
            yield outer.outputs
            if all(self.outer_of(c) is not outer for c in self.calls):
                self._bare.append(outer)
        except BaseException:
            if self.tape is not None:
                self.tape.pause()
            raise
        finally:
            self._outer = None

    def _within(self, graph) -> list[Recorded]:
        return [
            c for c in self.calls if is_within(graph, self.outer_of(c).graph)
        ]

    def _record_outputs(self):
        if self.tape is None or self._tape_is_stale:
            self.calls = [c for c in self.calls if self._is_own(c)]
            self.tape, self._tape_is_stale = marker.OwnTape(), False
        else:
            self.tape.resume()

    def reason_against(self, inputs) -> str | None:
        """Returns why a call of a layer cannot be recorded."""
        if isinstance(inputs, tf.SparseTensor):
            return "its inputs are sparse"
        again = marker.gradient_frame() is not None  # By a backward pass.
        if again or current_graph() is not self._current.graph:
            return (
                "called inside a while loop, a tf.function of its own or a "
                "rematerialized scope"
            )
        return None

    def add(self, recorded: Recorded) -> None:
        """Adds a call of a layer."""
        recorded.outers[id(self)] = self._current
        self.calls.append(recorded)
        if self.tape is not None and self._current.graph is None:
            self.tape.watch(recorded.source)

    @property
    def _current(self) -> OuterCall:
        assert self._outer is not None  # A layer is being called.
        return self._outer

    def outer_of(self, recorded: Recorded) -> OuterCall:
        """Returns the call of the model or part that a call belongs to."""
        return recorded.outers[id(self)]

    def outers_of(self, calls: Iterable[Recorded]) -> list[OuterCall]:
        """Returns those that these calls belong to, each once."""
        outers = map(self.outer_of, calls)
        return list({id(outer): outer for outer in outers}.values())

    def _returning(self, tensor) -> list[OuterCall]:
        """Returns the recorded calls that a tensor is an output of."""
        outers = self.outers_of(self.calls) or self._bare
        return [o for o in outers if any(tensor is y for y in o.outputs)]

    # While a backward pass runs, in eager mode.

    def note_arrival(self, recorded: Recorded, arrival: Arrival) -> bool:
        """Forgets a call of a layer in the step of another optimizer.

        Returns whether the gradient may be of a step of this one.
        """
        if self.tape is not None:
            self.tape.pause()
        if arrival.inner or self._is_source(arrival.frame):
            return True
        frame = arrival.frame
        if frame is not None and frame.f_locals["self"]._persistent:
            self._tape_is_stale = True
            return False
        self.calls = [c for c in self.calls if c is not recorded]
        if not self.calls:  # Else it is of a step that goes on.
            self.tape = None
        return False

    def forget_arrivals(self, calls: Iterable[Recorded]) -> None:
        """Ends a step, but for what another recorder has not ended."""
        for recorded in calls:
            others = (ref() for ref in recorded.recorders)
            if not any(r and recorded in r.calls for r in others):
                recorded.forget_arrivals()

    def _is_own(self, recorded):
        return any(
            not a.inner and self._is_source(a.frame) for a in recorded.arrivals
        )

    def _is_source(self, frame) -> bool:
        """Whether the gradients of a pass are of variables of the model."""
        if frame is None:
            return True
        own = {key for v in self.model.trainable_variables for key in keys(v)}
        return any(id(s) in own for s in records.sources(frame))

    # At an update.

    def pop(
        self,
    ) -> tuple[list[Recorded], list[OuterCall], list, "marker.OwnTape | None"]:
        """Returns what the current step has recorded, and forgets it all.

        Returns:
            (calls of layers, calls of the model that they belong to or, without
            any, all, calls of the compiled losses in groups, the tape that
            leads from the outputs to them in eager mode).
        """
        graph = current_graph()
        calls = self._within(graph)
        bare = [o for o in self._bare if is_within(graph, o.graph)]
        outers, self._bare = self.outers_of(calls) or bare, []
        groups = self.losses.pop(lambda g: is_within(graph, g))
        tape, self.tape = self.tape, None
        if tape is not None:
            tape.pause()
        self.calls, self._tape_is_stale = [], False
        self.will_restore(outers)
        return calls, outers, groups, tape

    def will_restore(self, outers: Iterable[OuterCall]) -> None:
        """Takes the state before these calls for that to go back to."""
        state: dict[int, tuple] = {}
        for outer in outers:
            for variable, value in outer.state:
                state.setdefault(id(variable), (variable, value))
        self._restorable = list(state.values())

    def undo_forward_pass(self) -> None:
        """Restores the non-trainable variables seen at the step's entry."""
        if self.calls or self._bare:
            self.pop()
        for variable, value in self._restorable:
            variable.assign(value)


def recorders_of(layer: keras.layers.Layer) -> "list[Recorder]":
    """Returns the recorders that hear a layer."""
    call = keras_compat.own_attribute(layer, "call")
    return list(getattr(call, "recorders", ()))


@contextlib.contextmanager
def unheard(model: keras.Model) -> Iterator[None]:
    """Within it, calls of a model and its layers are not recorded."""
    heard = map(recorders_of, keras_compat.layers_of(model))
    hearing = {r for recorders in heard for r in recorders if not r.deaf}
    for recorder in hearing:
        recorder.deaf = True
    try:
        yield
    finally:
        for recorder in hearing:
            recorder.deaf = False


def _recorders_of(layer) -> "weakref.WeakSet[Recorder]":
    call = keras_compat.own_attribute(layer, "call")
    if not hasattr(call, "recorders"):
        before = {} if call is None else {"call": call}
        call = _heard(layer, layer.call)
        call.before = before
        keras_compat.set_untracked(layer, call=call)
    return call.recorders


def _heard(layer, original):
    """Returns what stands before the call of a layer, for good."""
    recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()

    @functools.wraps(original)
    def call(*args, **options):
        if not (hearing := [r for r in recorders if r.hears(layer, options)]):
            return original(*args, **options)
        with contextlib.ExitStack() as stack:
            inside = [
                stack.enter_context(r.inside(layer, (args, options)))
                for r in hearing
            ]
            for r in hearing:
                stack.enter_context(r.reads.within(layer))
            outputs = _run(layer, original, hearing, *args, **options)
            for of_recorder in inside:
                of_recorder.extend(keras.tree.flatten(outputs))
        return outputs

    call = tf.autograph.experimental.do_not_convert(call)
    call.recorders = recorders
    return call


def _run(layer, original, hearing, *args, **options):
    """Runs a call of a layer, recorded by those that want it."""
    types = {r: t for r in hearing if (t := r.wants(layer)) is not None}
    if not types:
        return masks.handing_down(layer, original)(*args, **options)
    inputs, *more = records.positional(original, args, options)
    for recorder, kind in list(types.items()):
        reason = recorder.reason_against(inputs)
        reason = reason or kind.unsupported_call(layer, inputs)
        if reason is not None:
            recorder.unusable[id(layer)] = reason
            del types[recorder]
    if not types:
        return original(inputs, *more, **options)

    def keep(call: LayerCall) -> tf.Tensor:
        call.mask = records.first_known(
            masks.given_to(layer), call.mask, masks.of_examples()
        )
        source, refs = call.pre_activation, [weakref.ref(r) for r in types]
        recorded = Recorded(call, {}, source, refs)
        for recorder in types:
            recorder.add(recorded)
        through = [] if call.shortcut is None else [call.inputs]
        call.pre_activation = marker.mark(source, through, recorded)
        return call.pre_activation

    return next(iter(types.values())).record(
        layer, original, keep, inputs, tuple(more), options
    )
