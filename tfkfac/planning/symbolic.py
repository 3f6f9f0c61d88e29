"""A training step as a graph that is never run: who sees what, and FLOPs."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import keras_compat, registry
from tfkfac.blocks import CurvatureBlock, LayerCall
from tfkfac.capture.recorder import Recorder, unheard
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
    keras_compat.clear_losses(model)  # Those of the graph.
    return result[0]


class _Trace:
    """What the graph of a step tells, while it is being built."""

    def __init__(self, model: keras.Model, register: Callable):
        self._model, self._register = model, register
        self._graph = tf.compat.v1.get_default_graph()
        self._layers = {b.layer for b in register({}).blocks}
        self._in_loops = registry.in_loops(model)
        self._unusable: dict[int, str] = {}
        self._calls: list[LayerCall] = []
        self._forward: list[int] = []  # FLOPs of each call.

    def costs(self, inputs, inverter) -> StepCosts:
        """Builds the graph."""
        with tf.GradientTape(persistent=True) as tape:
            outputs = self._call_model(inputs)
        forward = set(self._graph.get_operations())
        variables = [v.value for v in self._model.trainable_variables]
        gradients = tape.gradient(outputs, variables)
        signals = tape.gradient(
            outputs, [call.pre_activation for call in self._calls]
        )
        for call, signal in zip(self._calls, signals):
            call.gradient = signal
        self._note_unreached(gradients)
        found = StepCosts(self._register(self._unusable))
        ahead = _ancestors(outputs, set())
        back = _ancestors(gradients, forward)
        found.gradient = self._count(ahead | back, found)
        found.sampled = self._count(_ancestors(signals, forward), found)
        passes = self._backward_products(tape, outputs)
        for block in found.registration.blocks:
            own = [i for i, c in enumerate(self._calls) if block.is_of(c)]
            costs = found.layers[block] = self._state(block, inverter)
            costs.gradient = sum(
                self._forward[i] * (1 + passes[i]) for i in own
            )
            calls = [self._calls[i] for i in own]
            costs.factors = self._moments(block, calls, found)
        return found

    def _call_model(self, inputs):
        """Records a call of the model; returns its floating-point outputs."""
        model = self._model
        options = (
            {"training": True} if keras_compat.takes_training(model) else {}
        )
        with unheard(model):
            recorder = Recorder(
                model,
                self._wants,
                before=lambda: True,
            )
            try:
                outputs = keras.tree.flatten(model(inputs, **options))
            finally:
                recorder.release()
        self._unusable = recorder.unusable
        known: set[tf.Operation] = set()
        for recorded in recorder.calls:
            call = recorded.call
            known.add(call.inputs.op)
            products = flops.count(_ancestors([recorded.source], known))
            known.add(recorded.source.op)
            self._calls.append(call)
            self._forward.append(products[0])
        return [t for t in outputs if t.dtype.is_floating]

    def _wants(self, layer):
        """Returns what records the calls of a layer."""
        known = layer in self._layers or (
            id(layer) not in self._in_loops and registry.may_have_parts(layer)
        )
        own = layer is not self._model and known
        return registry.recording(layer) if own else None

    def _note_unreached(self, gradients) -> None:
        """Notes layers that have a gradient, but not at their outputs."""
        variables = zip(self._model.trainable_variables, gradients)
        given = {id(v) for v, gradient in variables if gradient is not None}
        reached = {id(c.layer) for c in self._calls if c.gradient is not None}
        for layer in self._layers:
            own = {id(v) for v in layer.trainable_variables}
            if own & given and id(layer) not in reached:
                self._unusable[id(layer)] = "no gradient reaches its output"

    @staticmethod
    def _count(operations, found: StepCosts) -> int:
        count, names = flops.count(operations)
        found.uncounted = sorted({*found.uncounted, *names})
        return count

    def _backward_products(self, tape, outputs) -> list[int]:
        """Returns, for each product of each call, that of its gradients.

        One for the kernel, and one for the inputs where a gradient goes on, as
        it always does from step to step.
        """
        inputs = [c.inputs for c in self._calls]
        floating = [x for x in inputs if x.dtype.is_floating]
        gradients = iter(tape.gradient(outputs, floating))
        goes_on = [
            x.dtype.is_floating and next(gradients) is not None for x in inputs
        ]
        steps = [isinstance(c.layer, keras.layers.RNN) for c in self._calls]
        return [
            0 if call.gradient is None else 1 + (more or has_steps)
            for call, more, has_steps in zip(self._calls, goes_on, steps)
        ]

    def _moments(
        self, block, calls: Sequence[LayerCall], found: StepCosts
    ) -> int:
        """Returns the FLOPs of the second moments of a block."""
        calls = [c for c in calls if c.gradient is not None]
        if not calls:
            return 0
        seen = len(self._graph.get_operations())
        dtype = state_dtype(block.variables[0])
        block.moments(calls, dtype, dtype)
        return self._count(self._graph.get_operations()[seen:], found)

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


def _ancestors(
    tensors: Iterable[tf.Tensor | tf.IndexedSlices | None],
    known: set[tf.Operation],
) -> set[tf.Operation]:
    """Returns the operations that tensors need, but for known ones."""
    stack = [getattr(t, "values", t).op for t in tensors if t is not None]
    found: set[tf.Operation] = set()
    while stack:
        op = stack.pop()
        if op not in found and op not in known:
            found.add(op)
            stack.extend(t.op for t in op.inputs)
    return found
