"""Marks at pre-activations, where backward passes show their gradients."""

import sys
import weakref
from types import FrameType

import tensorflow as tf
from tensorflow.python.eager import record as tape_record

_TYPE = "TfkfacMark"
_MARKS = "_tfkfac_marks"  # Of a graph: what its marks call, by operation.


def mark(tensor: tf.Tensor, more: list[tf.Tensor], of) -> tf.Tensor:
    """Returns the tensor, and has backward passes come to `of.backward`.

    Unlike `tf.custom_gradient`, it leaves nothing in TensorFlow's registry of
    gradients: in a graph the mark is found by its operation. Tapes and graphs
    refer to it weakly: the garbage collector does not see through them.

    Args:
        tensor: What is marked.
        more: Other tensors that `of.backward` gives gradients for.
        of: What has `backward(gradient)`, which returns the gradients of
            `tensor` and of `more`.
    """
    inputs, reference = [tensor, *more], weakref.ref(of)
    with tape_record.stop_recording():
        marked = _identity(inputs, of)

    def backward(gradient):  # A tape lets nothing live on that it holds.
        known = reference()
        if known is None:
            return [gradient, *[None for _ in more]]
        return known.backward(gradient)

    tape_record.record_operation(_TYPE, [marked], inputs, backward)
    return marked


def _identity(inputs, of):
    if tf.executing_eagerly():
        return tf.identity(inputs[0])
    graph = tf.compat.v1.get_default_graph()
    kind = "IdentityN" if len(inputs) > 1 else "Identity"
    with graph.gradient_override_map({kind: _TYPE}):
        if len(inputs) > 1:
            marked = tf.identity_n(inputs)[0]
        else:
            marked = tf.identity(inputs[0])
    if not hasattr(graph, _MARKS):
        setattr(graph, _MARKS, weakref.WeakValueDictionary())
    getattr(graph, _MARKS)[marked.op.name] = of
    return marked


@tf.RegisterGradient(_TYPE)
def _gradients(op, gradient, *of_more):
    """The gradient of a mark where a graph is differentiated."""
    of = getattr(op.graph, _MARKS, {}).get(op.name)
    if of is None:  # Its step is over.
        return [gradient, *of_more]
    return of.backward(gradient)


def gradient_frame() -> FrameType | None:
    """Returns the frame of the call of `GradientTape.gradient` within which
    this is called; None where there is none."""
    code = tf.GradientTape.gradient.__code__
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame


def is_recording() -> bool:
    """Whether a gradient tape is active, those of `OwnTape` left out."""
    opened = list(_open)
    for tape in opened:
        tape.pause()
    try:
        return tape_record.could_possibly_record()
    finally:
        for tape in opened:
            tape.resume()


_open: "weakref.WeakSet[OwnTape]" = weakref.WeakSet()


class OwnTape:
    """A tape from the pre-activations to the outputs, in eager mode.

    It records from the first call of a layer to the loss, beside the tape of
    the training step, which can be used but once. In a graph there is no need
    of it: a graph can be differentiated afterwards.
    """

    def __init__(self):
        self.tape = tf.GradientTape(
            persistent=True, watch_accessed_variables=False
        )
        self._is_open = False
        self.resume()

    def __del__(self):
        # TensorFlow holds a tape that records: it would for good.
        self.pause()

    def watch(self, tensor: tf.Tensor) -> None:
        """Begins with a tensor."""
        self.tape.watch(tensor)

    def pause(self) -> None:
        """Records nothing until `resume`."""
        if self._is_open:
            self.tape.__exit__(None, None, None)
            self._is_open = False
            _open.discard(self)

    def resume(self) -> None:
        """Goes on."""
        if not self._is_open:
            self.tape.__enter__()
            self._is_open = True
            _open.add(self)
