"""Which calls of layers the applied gradient V went through.

In a graph V is walked back to the gradients that came to the marks. In eager
mode the calls of `GradientTape.gradient` tell: what they differentiated by, and
what they returned. Passes that a tape recorded are inner ones, as of a gradient
penalty, and do not count where there is another.
"""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfkfac.capture.records import (
    Arrival,
    Recorded,
    current_graph,
    keys,
)


class Passes(abc.ABC):
    """The backward passes of a step, in a graph or in eager mode."""

    @staticmethod
    def of(calls: Sequence[Recorded], warn: Callable[[str], None]) -> "Passes":
        """Returns those that came through the recorded calls of a step.

        Args:
            calls: The calls.
            warn: Called with what cannot be told.
        """
        if current_graph() is None:
            return _EagerPasses(warn)
        return _GraphPasses(calls)

    def through(
        self, V: Sequence, variables: Sequence, calls: Sequence[Recorded]
    ) -> list[tuple[Recorded, tf.Tensor]]:
        """Returns the calls of one layer that V went through.

        Args:
            V: The gradients of the layer's variables, as they are applied.
            variables: The variables.
            calls: All recorded calls of the layer in the step.

        Returns:
            (call, gradient at its pre-activation in the pass that gave V); the
            sum over the passes, where V is of several.
        """
        found = self._arrivals(
            V, variables, [a for call in calls for a in call.arrivals]
        )
        outer = [a for a in found if not a.inner] or found
        result = []
        for call in calls:
            of_call = [a for a in call.arrivals if a in found]
            gradients = [a.gradient for a in of_call if a in outer]
            if of_call and not gradients:  # V is of the inner pass alone.
                gradients = [tf.zeros_like(of_call[0].gradient)]
            if gradients:
                result.append((call, tf.add_n(gradients)))
        return result

    @abc.abstractmethod
    def _arrivals(
        self, V: Sequence, variables: Sequence, arrivals: list[Arrival]
    ) -> list[Arrival]:
        """Returns those, of one layer, of the passes that gave V."""


class _GraphPasses(Passes):
    """V is walked back to the first gradients at marks that it depends on."""

    def __init__(self, calls: Sequence[Recorded]):
        self._known = {
            _place(a.gradient) for call in calls for a in call.arrivals
        }
        self._outside: dict[tuple, tf.Tensor] = {}
        self._index: dict[tf.Operation, int] = {}
        self._first: dict[Any, float] = {}
        graph = current_graph()
        while graph is not None:
            for external, internal in getattr(graph, "captures", ()):
                self._outside[_place(internal)] = external
            graph = getattr(graph, "outer_graph", None)
        for graph in {op.graph for op, _ in self._known}:
            operations = enumerate(graph.get_operations())
            self._index.update((op, i) for i, op in operations)
        for op, _ in self._known:
            first = self._first.get(op.graph, math.inf)
            self._first[op.graph] = min(first, self._index[op])

    def _arrivals(self, V, variables, arrivals):
        places = self._back_from(V)
        return [a for a in arrivals if _place(a.gradient) in places]

    def _back_from(self, gradients) -> set:
        """Goes around scalars, such as the norm of all gradients."""
        stack = [getattr(g, "values", g) for g in gradients]
        found, seen = set(), set()
        while stack:
            tensor = stack.pop()
            if not hasattr(tensor, "op"):
                continue
            place, op = _place(tensor), tensor.op
            if place in self._known:
                found.add(place)
            elif place in self._outside:
                stack.append(self._outside[place])
            elif op not in seen and not self._is_forward(op):
                seen.add(op)
                stack.extend(t for t in op.inputs if t.shape.rank != 0)
        return found

    def _is_forward(self, op) -> bool:
        """Whether it was there before the first gradient at a mark."""
        first = self._first.get(op.graph)
        return first is not None and self._index.get(op, math.inf) < first


def _place(tensor):
    return tensor.op, tensor.value_index


class _EagerPasses(Passes):
    """V is compared with what the calls of `GradientTape.gradient` returned."""

    def __init__(self, warn: Callable[[str], None]):
        self._warn = warn

    def _arrivals(self, V, variables, arrivals):
        inner = all(a.inner for a in arrivals)
        frames = {
            id(a.frame): a.frame for a in arrivals if inner or not a.inner
        }
        wanted = set()
        for v, variable in zip(V, variables):
            returned = {
                key: g
                for key, frame in frames.items()
                if (g := _returned(frame, variable)) is not None
            }
            wanted |= self._that_gave(v, returned, variable)
        # All inner passes are taken to be in the loss: it cannot be told.
        others = wanted and not inner
        return [
            a for a in arrivals if id(a.frame) in wanted or (a.inner and others)
        ]

    def _that_gave(self, v, returned: dict, variable) -> set:
        """Returns the keys of the passes that v is of, or a sum of."""
        same = {key for key, g in returned.items() if g is v}
        if same or len(returned) < 2:
            return same or set(returned)
        columns = [_flat(g) for g in returned.values()]
        parts, *_ = np.linalg.lstsq(np.stack(columns, 1), _flat(v), rcond=None)
        rest = np.stack(columns, 1) @ parts - _flat(v)
        if np.linalg.norm(rest) > 1e-3 * np.linalg.norm(_flat(v)):
            self._warn(
                "it cannot be told which of several backward passes gave the "
                f"gradient of {variable.path}, for it was changed after them: "
                "the statistics are those of all. Apply gradients as "
                "GradientTape.gradient returns them, or make the step a "
                "tf.function."
            )
            return set(returned)
        least = 1e-3 * np.abs(parts).max()
        return {key for key, part in zip(returned, parts) if abs(part) > least}


def _returned(frame, variable):
    """Returns the gradient by a variable that a pass gave; None for none."""
    if frame is None:
        return None
    given = tf.nest.flatten(frame.f_locals["sources"])
    found = frame.f_locals.get("flat_grad") or [None] * len(given)
    own = keys(variable)
    for source, gradient in zip(given, found):
        if id(source) in own:
            return gradient
    return None


def _flat(gradient) -> np.ndarray:
    return tf.convert_to_tensor(gradient).numpy().astype("float64").ravel()
