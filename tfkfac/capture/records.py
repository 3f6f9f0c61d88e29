"""What is recorded of a step: calls of layers, gradients that came to them."""

import dataclasses
import inspect
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from tfkfac.blocks import LayerCall
from tfkfac.capture import marker


class Listener(Protocol):
    """What is told of gradients that come to the calls that it has heard."""

    calls: "list[Recorded]"

    def note_arrival(self, recorded: "Recorded", arrival: "Arrival") -> bool:
        """Takes note of a gradient, in eager mode; returns if it is its own."""


def current_graph():
    """Returns the graph that is being built; None when eager."""
    if tf.executing_eagerly():
        return None
    return tf.compat.v1.get_default_graph()


def is_within(graph, outer) -> bool:
    """Whether `graph` is `outer` or a branch of it."""
    if outer is None:
        return graph is None
    while graph is not None and graph is not outer:
        graph = getattr(graph, "outer_graph", None)
    return graph is outer


@dataclasses.dataclass(eq=False)
class OuterCall:
    """A call of the model, or of a part that was called by itself.

    Attributes:
        layer: The model or the part.
        graph: The graph that it ran in; None when eager.
        inputs: The first tensor that it was given: examples are its first axis.
        outputs: What it returned, flat.
        state: (variable, value at entry) of its non-trainable variables.
    """

    layer: keras.layers.Layer
    graph: Any
    inputs: tf.Tensor | None
    outputs: list = dataclasses.field(default_factory=list)
    state: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class Arrival:
    """A gradient that a backward pass of the training step brought.

    Attributes:
        gradient: At the pre-activation.
        inner: Whether a tape recorded the pass, as for a gradient penalty.
        frame: Of the call of `GradientTape.gradient`, in eager mode.
        differentiated_by: For an inner pass, the frames of the passes that went
            through this gradient, in eager mode.
    """

    gradient: tf.Tensor
    inner: bool
    frame: FrameType | None
    differentiated_by: list[FrameType] = dataclasses.field(default_factory=list)

    def forget(self) -> None:
        """Lets go of the frames: a frame holds its tape, and that its marks."""
        self.frame = None
        self.differentiated_by.clear()

    def backward(self, gradient):
        """Takes note of a pass through this gradient itself."""
        frame = marker.gradient_frame()
        if frame is not None and self.frame is not None:
            self.differentiated_by.append(frame)
        return [gradient]


@dataclasses.dataclass(eq=False)
class Recorded:
    """A call of a layer, and the backward passes that came through it.

    Attributes:
        call: What the layer saw.
        outers: For each recorder, by its id, the call of its model or of a
            part of it that this one belongs to.
        source: The pre-activation before the mark.
        recorders: Those that heard it.
        arrivals: One for each backward pass.
        observe: Called with this and the gradient in the backward pass of the
            statistics; returns what the pass has to wait for.
    """

    call: LayerCall
    outers: dict[int, OuterCall]
    source: tf.Tensor
    recorders: "list[weakref.ref[Listener]]"
    arrivals: list[Arrival] = dataclasses.field(default_factory=list)
    observe: Callable | None = None

    def backward(self, gradient):
        """Returns the gradients that go on, of the pre-activation first.

        With a shortcut, those of the statistics go on to the inputs of the
        layer, and not through what it did.
        """
        shortcut = self.call.shortcut
        if self.observe is None:
            gradient = self._arrive(tf.convert_to_tensor(gradient))
            return [gradient] if shortcut is None else [gradient, None]
        with tf.control_dependencies(self.observe(self, gradient)):
            gradient = tf.identity(gradient)
            if shortcut is None:
                return [gradient]
            return [None, shortcut.input_gradient(gradient)]

    def forget_arrivals(self) -> None:
        """Ends with the step."""
        for arrival in self.arrivals:
            arrival.forget()
        self.arrivals.clear()

    def _arrive(self, gradient):
        """Takes note of a gradient of the training step; returns it."""
        frame = marker.gradient_frame() if tf.executing_eagerly() else None
        arrival = Arrival(gradient, marker.is_recording(), frame)
        if tf.executing_eagerly() and frame is None:
            return gradient  # Such as of a forward accumulator.
        self.arrivals.append(arrival)
        if frame is not None:
            recorders = [r for r in (ref() for ref in self.recorders) if r]
            own = [r.note_arrival(self, arrival) for r in recorders]
            if not any(own):
                self.arrivals.pop()
                arrival.forget()
        if arrival.inner and frame is not None:
            return marker.mark(gradient, [], arrival)
        return gradient


def keys(variable) -> tuple[int, ...]:
    """Returns the ids that a variable goes by as a source of a gradient."""
    return id(variable), id(getattr(variable, "_value", variable))


def sources(frame: FrameType) -> list:
    """Returns what a call of `GradientTape.gradient` differentiates by."""
    return tf.nest.flatten(frame.f_locals["sources"])


def positional(call: Callable, args: tuple, options: dict) -> list:
    """Returns the positional arguments of a call, the first of which may have
    been given by its name: that is taken out of `options`."""
    if args:
        return list(args)
    return [options.pop(next(iter(inspect.signature(call).parameters)))]


def first_known(*values):
    """Returns the first that is not None; None for none."""
    return next((v for v in values if v is not None), None)


def first_tensor(arguments) -> tf.Tensor | None:
    """Returns the first tensor among arguments that is no scalar."""
    for value in keras.tree.flatten(arguments):
        if isinstance(value, np.ndarray | keras.Variable):
            value = tf.convert_to_tensor(value)  # Functional models take them.
        if tf.is_tensor(value) and value.shape.rank != 0:
            return value
    return None
