"""Which calls of layers the applied gradient V went through.

In a graph V is walked back to the gradients that came to the marks. In eager
mode the calls of `GradientTape.gradient` tell: what they differentiated by, and
what they returned. Passes that a tape recorded are inner ones, as of a gradient
penalty, and do not count where there is another.
"""

import abc
import collections
from collections.abc import Callable, Sequence

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
    def of(
        calls: Sequence[Recorded],
        V: Sequence,
        variables: Sequence,
        warn: Callable[[str], None],
    ) -> "Passes":
        """Returns those that came through the recorded calls of a step.

        Args:
            calls: The calls.
            V: All gradients, as they are applied.
            variables: Their variables.
            warn: Called with what cannot be told.
        """
        if current_graph() is None:
            return _EagerPasses(calls, V, variables, warn)
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
        graph = current_graph()
        while graph is not None:
            for external, internal in getattr(graph, "captures", ()):
                self._outside[_place(internal)] = external
            graph = getattr(graph, "outer_graph", None)
        self._forward = self._ancestors([call.source for call in calls])

    def _arrivals(self, V, variables, arrivals):
        places = self._back_from(V)
        return [a for a in arrivals if _place(a.gradient) in places]

    def _inside(self, tensor):
        """Returns what a tensor stands for that a branch has captured."""
        while hasattr(tensor, "op") and _place(tensor) in self._outside:
            tensor = self._outside[_place(tensor)]
        return tensor

    def _ancestors(self, tensors) -> set[tf.Operation]:
        """Returns the operations of the forward pass."""
        stack, found = list(tensors), set()
        while stack:
            tensor = self._inside(stack.pop())
            if hasattr(tensor, "op") and tensor.op not in found:
                found.add(tensor.op)
                stack.extend(tensor.op.inputs)
        return found

    def _back_from(self, gradients) -> set[tuple]:
        """Goes around scalars, such as the norm of all gradients, and around
        what the layers saw, which may come of gradients of another pass; but
        not around the lists of tensors that loops take, scalars by shape."""
        stack = [getattr(g, "values", g) for g in gradients]
        found, seen = set(), set()
        while stack:
            tensor = self._inside(stack.pop())
            if not hasattr(tensor, "op"):
                continue
            place, op = _place(tensor), tensor.op
            if place in self._known:
                found.add(place)
            elif op not in seen and op not in self._forward:
                seen.add(op)
                stack.extend(
                    t
                    for t in op.inputs
                    if t.shape.rank != 0 or t.dtype == tf.variant
                )
        return found


def _place(tensor):
    return tensor.op, tensor.value_index


class _EagerPasses(Passes):
    """V is compared with what the calls of `GradientTape.gradient` returned."""

    def __init__(
        self,
        calls: Sequence[Recorded],
        V: Sequence,
        variables: Sequence,
        warn: Callable[[str], None],
    ):
        self._warn = warn
        arrivals = [a for call in calls for a in call.arrivals]
        frames = {id(a.frame): a.frame for a in arrivals}
        self._gave: dict[int, set[int]] = {}  # By the id of a variable.
        unclear = []
        for v, variable in zip(V, variables):
            returned = {
                key: g
                for key, frame in frames.items()
                if (g := _returned(frame, variable)) is not None
            }
            same = {key for key, g in returned.items() if g is v}
            self._gave[id(variable)] = same or set(returned)
            if not same and len(returned) > 1:
                unclear.append((v, variable, returned))
        if unclear:
            self._compare(unclear)
        # By the key of an inner pass those that differentiated it, and how
        # many gradients it brought.
        self._differentiated: dict[int, set[int]] = {}
        self._counts: collections.Counter[int] = collections.Counter()
        for arrival in (a for a in arrivals if a.inner):
            key = id(arrival.frame)
            self._counts[key] += 1
            by = self._differentiated.setdefault(key, set())
            by |= {id(frame) for frame in arrival.differentiated_by}

    def _arrivals(self, V, variables, arrivals):
        wanted: set[int] = set()
        wanted = wanted.union(*(self._gave[id(v)] for v in variables))
        return [
            a
            for a in arrivals
            if id(a.frame) in wanted or self._is_part(a, wanted)
        ]

    def _is_part(self, arrival: Arrival, wanted: set[int]) -> bool:
        """Whether an inner pass was differentiated by one that gave V.

        It is told by its gradients that depend on variables; where it has but
        one, which may be constant, it is taken to be so.
        """
        if not arrival.inner or not wanted:
            return False
        key = id(arrival.frame)
        return self._counts[key] == 1 or bool(
            wanted & self._differentiated[key]
        )

    def _compare(self, unclear) -> None:
        """Finds the passes whose gradients V is of, changed afterwards.

        One pass, the last first, of which each v is a multiple, as clipped
        gradients are; else the passes that V is a sum of.
        """
        known = list({key: None for *_, r in unclear for key in r})
        for key in reversed(known):
            if all(_is_multiple(v, r.get(key)) for v, _, r in unclear):
                found = {key}
                break
        else:
            found = self._summands(unclear, known)
        for _, variable, returned in unclear:
            self._gave[id(variable)] = found & set(returned)

    def _summands(self, unclear, known) -> set[int]:
        columns = [
            np.concatenate(
                [_flat(r[k]) if k in r else 0 * _flat(v) for v, _, r in unclear]
            )
            for k in known
        ]
        matrix = np.stack(columns, 1)
        total = np.concatenate([_flat(v) for v, *_ in unclear])
        parts, _, rank, _ = np.linalg.lstsq(matrix, total, rcond=1e-6)
        rest = np.linalg.norm(matrix @ parts - total)
        if rank == len(known) and rest <= 1e-3 * np.linalg.norm(total):
            least = 1e-3 * np.abs(parts).max()
            return {key for key, x in zip(known, parts) if abs(x) > least}
        _, variable, _ = unclear[0]
        self._warn(
            "it cannot be told which of several backward passes gave the "
            f"gradients of {variable.path} and {len(unclear) - 1} more, for "
            "they were changed afterwards: the statistics are those of all. "
            "Apply gradients as GradientTape.gradient returns them, or make "
            "the step a tf.function."
        )
        return set(known)


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


def _is_multiple(v, gradient) -> bool:
    if gradient is None:
        return False
    a, b = _flat(v), _flat(gradient)
    part = (a @ b) / (b @ b) if b.any() else 0.0
    return np.linalg.norm(a - part * b) <= 1e-4 * np.linalg.norm(a)


def _flat(gradient) -> np.ndarray:
    return tf.convert_to_tensor(gradient).numpy().astype("float64").ravel()
