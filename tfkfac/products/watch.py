"""Follows the weights of a layer through one of its calls."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfkfac import tensorflow_compat
from tfkfac.products import examples, uses
from tfkfac.products.contraction import View, contraction

_CONVOLUTIONS = "Conv2D", "Conv3D"
_PRODUCTS = "MatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum"


class Watch:
    """Hears the operations of a call of a layer, as of `tensorflow_compat`.

    Each weight is followed from where it is read, through what leaves its
    elements as they are, to the operations that it enters. A product, a scale
    or a shift is understood where the other operand depends on the arguments
    of the call: of weights alone there are no rows.

    Args:
        weights: The layer's weights by name.
        arguments: Those of the call, the inputs first.
        graph: The graph that the call is in; None in eager mode.
        mark: `mark(use, result)` returns what stands in place of the result.
    """

    def __init__(
        self,
        weights: Mapping[str, keras.Variable],
        arguments: Any,
        graph: Any,
        mark: Callable[[uses.Use, tf.Tensor], tf.Tensor],
    ):
        self._graph, self._mark = graph, mark
        self._shapes = {n: tuple(v.shape) for n, v in weights.items()}
        self._handles = {
            n: tensorflow_compat.handle(v) for n, v in weights.items()
        }
        self._names = {id(h): n for n, h in self._handles.items()}
        self._before = self._readers()
        self._views: dict[int, tuple[str, View]] = {}
        self._pending: dict[int, uses.Use] = {}
        # By the id of a result, or of a reshaped one, its use.
        self._results: dict[int, uses.Use] = {}
        tensors = [t for t in keras.tree.flatten(arguments) if tf.is_tensor(t)]
        # What depends on the arguments, with the entries of the first axis
        # that are of one example.
        self._data: dict[int, int | None] = {id(t): 1 for t in tensors}
        self._first = tensors[0] if tensors else None
        # Where the positions of the inputs are, for their mask.
        self._positions: dict[int, str | None] = {
            id(self._first): examples.AXES
        }
        self._alive: list[Any] = [tensors]  # So that an id is of one tensor.
        self._heard: set[str] = set()
        # By weight, the operations that it enters, not understood or so.
        self._seen: dict[str, list[uses.Use | str]] = {n: [] for n in weights}

    # While the layer is called.

    def hear(self, kind, name, inputs, attributes, outputs, graph) -> None:
        """As `tensorflow_compat.Listener`."""
        for tensor in inputs:
            if tensor.dtype == tf.resource:
                outer = tensorflow_compat.outside(tensor, graph)
                weight = self._names.get(id(outer))
                if weight is not None:
                    self._read(weight, kind, outputs, graph)
        if graph is not self._graph:
            self._hear_inner(inputs, graph)
            return
        self._alive += [inputs, outputs]
        if name is not None:
            self._heard.add(name)
        if any(id(t) in self._data for t in inputs):
            self._follow_data(kind, attributes, inputs, outputs)
        places = [i for i, t in enumerate(inputs) if id(t) in self._views]
        for place in places:
            weight, view = self._views[id(inputs[place])]
            if len(places) > 1 or not self._understand(
                weight, view, kind, place, inputs, attributes, outputs
            ):
                self._seen[weight].append(kind)
        for tensor in inputs:
            use = self._results.get(id(tensor))
            if use is None:
                continue
            if kind in uses.SAME and tensor is inputs[0]:
                self._results[id(outputs[0])] = use
            else:
                use.consumers.append(kind)

    def replacement(self, result: tf.Tensor) -> tf.Tensor:
        """As `tensorflow_compat.Listener`."""
        use = self._pending.pop(id(result), None)
        if use is None:
            return result
        marked = self._mark(use, result)
        use.is_marked = True
        self._alive.append(marked)
        self._data[id(marked)] = self._data.get(id(result))
        self._positions[id(marked)] = self._positions.get(id(result))
        self._results[id(marked)] = use
        return marked

    def _read(self, weight, kind, outputs, graph):
        if kind != "ReadVariableOp" or graph is not self._graph:
            self._seen[weight].append(kind)
            return
        self._alive.append(outputs)
        self._views[id(outputs[0])] = weight, View(self._shapes[weight])

    def _hear_inner(self, inputs, graph):
        """Hears an operation of a branch or a function within the call."""
        for tensor in inputs:
            outer = tensorflow_compat.outside(tensor, graph, self._graph)
            if outer is not tensor and id(outer) in self._views:
                self._seen[self._views[id(outer)][0]].append("a function")

    def _follow_data(self, kind, attributes, inputs, outputs):
        """Notes where examples and positions are in the outputs."""
        known = [self._data.get(id(t), 0) for t in inputs]
        places = [self._positions.get(id(t)) for t in inputs]
        for t in outputs:
            self._data[id(t)] = examples.entries(
                kind, attributes, inputs, known, t
            )
            self._positions[id(t)] = examples.positions(
                kind, attributes, inputs, places, t, self._first
            )

    def _understand(
        self, weight, view, kind, place, inputs, attributes, outputs
    ) -> bool:
        """Takes what an operation does with a weight; whether it is known."""
        after = uses.passed_on(view, kind, place, inputs, outputs)
        if after is not None:
            self._views[id(outputs[0])] = weight, after
            return True
        if len(inputs) != 2:
            return False
        other, result = inputs[1 - place], outputs[0]
        if id(other) not in self._data:
            return False
        entries = self._data[id(other)]
        use = uses.Use("", kind, weight, view, other, entries)
        use.positions = self._positions.get(id(other))
        if kind in _PRODUCTS:
            use.kind = "product"
            ranks = [t.shape.rank for t in inputs]
            found = contraction(kind, attributes, ranks, place)
            if found is None or not found.is_understood(
                other.shape, view.shape
            ):
                return False
            use.contraction = found
        elif kind in _CONVOLUTIONS and place == 1:
            use.kind = "convolution"
            use.window = uses.window(attributes, view, other)
            if use.window is None or entries is None:
                return False
        elif kind in uses.SUMS and uses.is_last(attributes):
            known = self._results.get(id(other))
            if (
                known
                and known.shift is None
                and uses.can_join(known, view, other)
            ):
                known.shift, known.shifted = weight, result
                self._seen[weight].append(known)
                return True
            use.kind = "shift"
        elif kind == "Mul":
            use.kind = "scale"
        else:
            return False
        is_elementwise = use.kind in ("scale", "shift")
        if is_elementwise and not self._has_examples(use, result):
            return False
        self._pending[id(result)] = use
        self._seen[weight].append(use)
        return True

    def _has_examples(self, use, result):
        """Whether the first axis of x and of the result is of examples."""
        x, view = use.other, use.view
        rank, first = result.shape.rank, self._first
        if x.shape.rank != rank or not rank or not view.is_flat:
            return False
        if len(view.shape) == rank and view.shape[0] != 1:
            return False
        batch = result.shape[0]
        return use.entries == 1 and (
            batch is None or (first.shape.rank and batch == first.shape[0])
        )

    # After it.

    def found(self, outputs: Any) -> dict[str, uses.Use | str]:
        """Returns the one use of each weight; else what was seen of it.

        Args:
            outputs: What the call returned.
        """
        self._add_unheard()
        returned = {id(t) for t in keras.tree.flatten(outputs)}
        for key, use in self._results.items():
            if key in returned:
                use.consumers.append("what the call returns")
        return {name: self._use_of(name) for name in self._handles}

    def _use_of(self, name):
        seen = self._seen[name]
        if not seen:
            return "its call was not seen to use it"
        if len(seen) > 1 or isinstance(seen[0], str):
            kinds = [x if isinstance(x, str) else x.operation for x in seen]
            return f"its call uses it in {uses.listed(kinds)}"
        (use,) = seen
        if not use.is_marked:
            return f"its call uses it in a raw {use.operation}"
        if use.shift == name and not self._is_joined(use):
            return "what it is added to is used elsewhere, too"
        return use

    def _is_joined(self, use):
        """Whether the result goes nowhere but where a shift is added."""
        alone = len(use.consumers) == 1 and use.consumers[0] in uses.SUMS
        return alone and not isinstance(self._use_of(use.weight), str)

    def _readers(self):
        """Returns the names of what takes the weights in the graph."""
        if self._graph is None:
            return set()
        tensors = [
            tensorflow_compat.inside(h, self._graph)
            for h in self._handles.values()
        ]
        return {
            op.name for t in tensors if t is not None for op in t.consumers()
        }

    def _add_unheard(self):
        """Adds operations of the graph that the callbacks leave out."""
        if self._graph is None:
            return
        known = self._before | self._heard
        for name, handle in self._handles.items():
            inner = tensorflow_compat.inside(handle, self._graph)
            for op in [] if inner is None else inner.consumers():
                if op.name not in known:
                    self._seen[name].append(op.type)
        tensors = filter(tf.is_tensor, keras.tree.flatten(self._alive))
        for tensor in {id(t): t for t in tensors}.values():
            view = self._views.get(id(tensor))
            use = self._results.get(id(tensor))
            if view is None and use is None:
                continue
            for op in tensor.consumers():
                if op.name in self._heard:
                    continue
                if view is not None:
                    self._seen[view[0]].append(op.type)
                if use is not None:
                    use.consumers.append(op.type)
