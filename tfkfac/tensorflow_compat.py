"""What this package takes of TensorFlow that is not public, but for tapes.

Operations are heard by the callbacks of TensorFlow's debugger, which are of one
thread, in a graph and in eager mode. These callbacks cannot replace a result:
in a graph the tape would then pass the replacement by. So products, sums and
elementwise products are replaced where TensorFlow's Python functions end, in
the generated modules, as long as a call is listened to.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf
from tensorflow.python.eager import context, record
from tensorflow.python.framework import op_callbacks
from tensorflow.python.ops import gen_linalg_ops, gen_math_ops, gen_nn_ops

from tfkfac import keras_compat

_REPLACEABLE = {
    gen_linalg_ops: ("einsum",),
    gen_math_ops: (
        "add_v2",
        "batch_mat_mul_v2",
        "batch_mat_mul_v3",
        "mat_mul",
        "mul",
    ),
    gen_nn_ops: ("bias_add", "conv2d", "conv3d"),
}


class Listener(Protocol):
    """What hears the operations of a thread."""

    def hear(
        self,
        kind: str,
        name: str | None,
        inputs: Sequence[tf.Tensor],
        attributes: Mapping[str, Any],
        outputs: Sequence[tf.Tensor],
        graph: tf.Graph | None,
    ) -> None:
        """Hears of an operation.

        Args:
            kind: Its type, such as "MatMul".
            name: Its name in the graph; None in eager mode.
            inputs, attributes, outputs: What it is of; in eager mode last the
                handles of variables that it has read.
            graph: The graph that it was added to; None in eager mode.
        """

    def replacement(self, result: tf.Tensor) -> tf.Tensor:
        """Returns what stands in place of a product or a sum, or itself."""


class ReadVariables:
    """Hears which trainable variables this thread reads."""

    def __init__(self):
        self._watcher: Any = None

    def begin(self) -> None:
        """Begins to listen."""
        self._watcher = record.VariableWatcher().__enter__()

    def end(self) -> None:
        """Ends it."""
        self._watcher.__exit__(None, None, None)

    def take(self) -> list[tf.Variable]:
        """Returns those that were read since it began, or the last time."""
        variables = list(self._watcher.watched_variables())
        if variables:
            self.end()
            self.begin()
        return variables


class _Thread(threading.local):
    """The listeners of a thread, the innermost last, and what they hear of."""

    def __init__(self):
        self.listeners: list[Listener] = []
        self.reads = ReadVariables()

    def begin(self) -> None:
        """Begins to hear operations, and reads of trainable variables."""
        op_callbacks.add_op_callback(_hear)
        self.reads.begin()

    def end(self) -> None:
        """Ends what `begin` began."""
        op_callbacks.remove_op_callback(_hear)
        self.reads.end()


_thread, _lock = _Thread(), threading.Lock()
_originals: dict[tuple, Callable] = {}
_listening = 0  # Over all threads.


@contextlib.contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Within it, a listener hears the operations of this thread."""
    _begin()
    listeners = _thread.listeners
    if not listeners:
        _thread.begin()
    listeners.append(listener)
    try:
        yield
    finally:
        listeners.remove(listener)
        if not listeners:
            _thread.end()
        _end()


def _begin() -> None:
    global _listening
    with _lock:
        _listening += 1
        if _listening > 1:
            return
        for module, names in _REPLACEABLE.items():
            for name in names:
                original = getattr(module, name)
                _originals[module, name] = original
                setattr(module, name, _replacing(original))


def _end() -> None:
    global _listening
    with _lock:
        _listening -= 1
        if _listening:
            return
        for (module, name), original in _originals.items():
            setattr(module, name, original)
        _originals.clear()


def _replacing(original: Callable) -> Callable:
    """Returns a generated function whose result listeners may replace."""

    @functools.wraps(original)
    def call(*args, **options):
        listeners = _thread.listeners
        if not listeners:
            return original(*args, **options)
        # Eagerly a variable as an operand would be read unheard.
        args, options = keras.tree.map_structure(_read, (args, options))
        result = original(*args, **options)
        for listener in reversed(listeners):
            result = listener.replacement(result)
        return result

    return call


def _read(value):
    is_variable = isinstance(value, tf.Variable)
    return tf.convert_to_tensor(value) if is_variable else value


def _hear(kind, inputs, attributes, outputs, op_name=None, graph=None):
    """As TensorFlow calls it; the name is given in another place eagerly."""
    kind = kind.decode() if isinstance(kind, bytes) else kind
    pairs = zip(attributes[::2], attributes[1::2])
    known = {name: _value(value) for name, value in pairs}
    name = None if graph is None else op_name
    if graph is None:
        # Eagerly a variable as an operand is read by the operation itself.
        read = [v.handle for v in _thread.reads.take()]
        more = [h for h in read if all(h is not t for t in inputs)]
        inputs = [*inputs, *more]
    for listener in list(_thread.listeners):
        listener.hear(kind, name, inputs, known, outputs, graph)
    return outputs


def _value(attribute):
    """Returns the value of an attribute, which in a graph is a message."""
    if hasattr(attribute, "WhichOneof"):
        kind = attribute.WhichOneof("value")
        attribute = None if kind is None else getattr(attribute, kind)
        if kind == "list":
            attribute = list(attribute.i)  # Of strides and dilations.
    if isinstance(attribute, bytes):  # A message, of calls of functions.
        return attribute.decode(errors="replace")
    return attribute


def handle(variable: keras.Variable) -> tf.Tensor:
    """Returns the tensor that operations which read a variable take."""
    return keras_compat.tensorflow_variable(variable).handle


def outside(tensor: tf.Tensor, graph: Any, until: Any = None) -> tf.Tensor:
    """Returns what a tensor of a graph stands for that was captured.

    Args:
        tensor: In `graph`.
        graph: A graph, or None.
        until: The graph to stop at; None goes on to the outermost.
    """
    while graph is not None and graph is not until:
        captures = getattr(graph, "captures", ())
        outer = [ext for ext, internal in captures if internal is tensor]
        if outer:
            tensor = outer[0]
        graph = getattr(graph, "outer_graph", None)
    return tensor


def inside(tensor: tf.Tensor, graph: Any) -> tf.Tensor | None:
    """Returns what a captured tensor is within a graph; None for none."""
    for external, internal in getattr(graph, "captures", ()):
        outer = getattr(graph, "outer_graph", None)
        if outside(external, outer) is tensor:
            return internal
    return None


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it, TensorFlow's global seed is another, in eager mode.

    What operations draw within it depends on the seed alone; draws after it are
    those that there would be without it.
    """
    of_process = context.context()
    before = of_process._seed, getattr(of_process, "_rng", None)
    of_process._set_global_seed(seed)
    try:
        yield
    finally:
        of_process._seed, of_process._rng = before
        of_process.clear_kernel_cache()


@contextlib.contextmanager
def unoptimized() -> Iterator[None]:
    """Has TensorFlow not optimize the functions whose calls a graph is given.

    This concerns the calling thread alone. On ResNet-20 it saves 2 of the
    first step's 13 seconds, while the steps with factors and inversions take
    as long as before.
    """
    current = context.context()
    before = current.function_call_options
    config = tf.compat.v1.ConfigProto.FromString(before.config_proto_serialized)
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    current.function_call_options = context.FunctionCallOptions(
        executor_type=before.executor_type, config_proto=config
    )
    try:
        yield
    finally:
        current.function_call_options = before
