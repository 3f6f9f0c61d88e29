"""A training step as a graph that is never run: who sees what, and FLOPs."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import registry
from tfkfac.blocks import CurvatureBlock, LayerCall
from tfkfac.capture.recorder import unheard
from tfkfac.estimator import state_dtype
from tfkfac.inverters import Inverter
from tfkfac.planning import flops


@dataclasses.dataclass
class LayerCosts:
    """FLOPs and state of one block.

    Attributes:
        gradient: FLOPs of the forward and backward pass.
        factors: FLOPs of the second moments, the gradients given.
        factor_bytes: Of the running averages.
        inverse_bytes: Of all that U takes.
        inverse_elements: The numbers that they have.
    """

    gradient: int = 0
    factors: int = 0
    factor_bytes: int = 0
    inverse_bytes: int = 0
    inverse_elements: int = 0


@dataclasses.dataclass
class StepCosts:
    """FLOPs of one step of data, without what the optimizer makes of it.

    Attributes:
        registration: The blocks, and what has none.
        layers: Of each block.
        gradient: FLOPs of the forward and backward pass, all layers.
        sampled: FLOPs of the further backward pass of sampled targets.
        uncounted: Names of operations that are left out.
    """

    registration: registry.Registration
    layers: dict[CurvatureBlock, LayerCosts] = dataclasses.field(
        default_factory=dict
    )
    gradient: int = 0
    sampled: int = 0
    uncounted: list[str] = dataclasses.field(default_factory=list)


def trace(
    model: keras.Model,
    specs: Any,
    inverter: Inverter,
    register: Callable[[dict[int, str]], registry.Registration],
) -> StepCosts:
    """Returns the costs of a step, from its graph.

    Args:
        model: A built model.
        specs: As `inputs.specs` gives.
        inverter: For the size of the inverses.
        register: Returns the blocks; its argument says, by the id of a layer,
            why it can have none.
    """
    result = []

    def step(inputs):
        result.append(_Trace(model, register).costs(inputs, inverter))

    tf.function(step, autograph=False).get_concrete_function(specs)
    model._clear_losses()  # Those of the graph.
    return result[0]


class _Trace:
    """What the graph of a step tells, while it is being built."""

    def __init__(self, model: keras.Model, register: Callable):
        self._model = model
        self._graph = tf.compat.v1.get_default_graph()
        self._register = register
        self._unusable: dict[int, str] = {}
        self._uses: list[LayerCall] = []
        self._forward: list[int] = []  # FLOPs of each use.
        self._seen = 0  # How many operations of the graph are not new.

    def costs(self, inputs, inverter) -> StepCosts:
        """Builds the graph."""
        with tf.GradientTape(persistent=True) as tape:
            outputs = self._call_model(inputs)
        forward = set(self._graph.get_operations())
        variables = [v.value for v in self._model.trainable_variables]
        gradients = tape.gradient(outputs, variables)
        signals = tape.gradient(outputs, [u.pre_activation for u in self._uses])
        for use, signal in zip(self._uses, signals):
            use.gradient = signal
        self._note_unreached(gradients)
        found = StepCosts(self._register(self._unusable))
        ahead = _ancestors(outputs, set())
        back = _ancestors(gradients, forward)
        found.gradient = self._count(ahead | back, found)
        found.sampled = self._count(_ancestors(signals, forward), found)
        passes = self._backward_products(tape, outputs)
        for block in found.registration.blocks:
            own = [i for i, u in enumerate(self._uses) if block.is_of(u)]
            costs = found.layers[block] = self._state(block, inverter)
            costs.gradient = sum(
                self._forward[i] * (1 + passes[i]) for i in own
            )
            uses = [self._uses[i] for i in own]
            costs.factors = self._moments(block, uses, found)
        return found

    def _call_model(self, inputs):
        """Returns the floating-point outputs."""
        model = self._model
        options = {"training": True} if model._call_has_training_arg else {}
        with self._wrapped():
            outputs = keras.tree.flatten(model(inputs, **options))
        return [t for t in outputs if t.dtype.is_floating]

    @contextlib.contextmanager
    def _wrapped(self):
        """Has layers with a block note their calls, here alone."""
        layers = {b.layer for b in self._register({}).blocks}
        calls = {x: _noting(self, x) for x in layers}
        before = {x: x.__dict__.get("call") for x in calls}
        for layer, call in calls.items():
            layer.__dict__["call"] = call
        try:
            with unheard(self._model):
                yield
        finally:
            for layer, call in before.items():
                layer.__dict__.pop("call")
                if call is not None:
                    layer.__dict__["call"] = call

    def record(self, layer, original, inputs, args, options):
        """Runs a call of a layer, and notes its uses."""
        if isinstance(inputs, tf.SparseTensor):
            self._unusable[id(layer)] = "its inputs are sparse"
        elif tf.compat.v1.get_default_graph() is not self._graph:
            self._unusable[id(layer)] = "called inside a loop or a function"
        if id(layer) in self._unusable:
            return original(inputs, *args, **options)
        self._new()

        def keep(use):
            self._uses.append(use)
            self._forward.append(flops.count(self._new())[0])
            return use.pre_activation

        block_type = registry.block_type(layer)
        return block_type.record(layer, original, keep, inputs, args, options)

    def _note_unreached(self, gradients) -> None:
        """Notes layers that have a gradient, but not at their outputs."""
        variables = zip(self._model.trainable_variables, gradients)
        given = {id(v) for v, gradient in variables if gradient is not None}
        reached = {id(u.layer) for u in self._uses if u.gradient is not None}
        for layer in (u.layer for u in self._uses):
            own = {id(v) for v in layer.trainable_variables}
            if own & given and id(layer) not in reached:
                self._unusable[id(layer)] = "no gradient reaches its output"

    def _new(self) -> list[tf.Operation]:
        """Returns the operations made since the last call of it."""
        operations = self._graph.get_operations()
        new, self._seen = operations[self._seen :], len(operations)
        return new

    @staticmethod
    def _count(operations, found: StepCosts) -> int:
        count, names = flops.count(operations)
        found.uncounted = sorted({*found.uncounted, *names})
        return count

    def _backward_products(self, tape, outputs) -> list[int]:
        """Returns, for each product of each use, that of its gradients.

        One for the kernel, and one for the inputs where a gradient goes on.
        """
        inputs = [u.inputs for u in self._uses]
        floating = [x for x in inputs if x.dtype.is_floating]
        gradients = iter(tape.gradient(outputs, floating))
        goes_on = [
            x.dtype.is_floating and next(gradients) is not None for x in inputs
        ]
        return [
            0 if use.gradient is None else 1 + more
            for use, more in zip(self._uses, goes_on)
        ]

    def _moments(
        self, block, uses: Sequence[LayerCall], found: StepCosts
    ) -> int:
        """Returns the FLOPs of the second moments of a block."""
        uses = [u for u in uses if u.gradient is not None]
        if not uses:
            return 0
        self._new()
        dtype = state_dtype(block.variables[0])
        block.moments(uses, dtype, dtype)
        return self._count(self._new(), found)

    @staticmethod
    def _state(block: CurvatureBlock, inverter: Inverter) -> LayerCosts:
        """Returns the sizes of the state, of which nothing is made."""
        tensors: list[tf.Tensor] = []

        def add_state(name, initial):
            del name
            tensors.append(initial)
            return initial

        def sizes():
            elements = [t.shape.num_elements() for t in tensors]
            size = sum(n * t.dtype.size for n, t in zip(elements, tensors))
            tensors.clear()
            return size, sum(elements)

        dtype = state_dtype(block.variables[0])
        block.build_factors(add_state, dtype, accumulates=False)
        factor_bytes, _ = sizes()
        block.build_inverses(inverter, add_state, dtype)
        inverse_bytes, inverse_elements = sizes()
        return LayerCosts(
            factor_bytes=factor_bytes,
            inverse_bytes=inverse_bytes,
            inverse_elements=inverse_elements,
        )


def _noting(trace: _Trace, layer: keras.layers.Layer) -> Callable:
    """Returns what stands for the call of a layer within the trace."""
    original = layer.call

    @functools.wraps(original)
    def call(inputs, *args, **options):
        return trace.record(layer, original, inputs, args, options)

    return call


def _ancestors(
    tensors: Iterable[tf.Tensor | tf.IndexedSlices | None],
    known: set[tf.Operation],
) -> set[tf.Operation]:
    """Returns the operations that tensors need, but for known ones."""
    tensors = [t for t in tensors if t is not None]
    stack = [getattr(t, "values", t).op for t in tensors]
    found: set[tf.Operation] = set()
    while stack:
        op = stack.pop()
        if op not in found and op not in known:
            found.add(op)
            stack.extend(t.op for t in op.inputs)
    return found
