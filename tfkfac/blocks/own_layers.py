"""Layers of one's own: what their calls do with their weights."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tfkfac import keras_compat, structure, tensorflow_compat
from tfkfac.blocks import low_rank
from tfkfac.blocks.base import CurvatureBlock, LayerCall
from tfkfac.blocks.own import (
    ElementwiseBlock,
    OwnConvolutionBlock,
    Part,
    ProductBlock,
)
from tfkfac.products.contraction import View
from tfkfac.products.uses import Use
from tfkfac.products.watch import Watch

_BLOCKS: dict[str, Callable[..., CurvatureBlock]] = {
    "product": ProductBlock,
    "convolution": OwnConvolutionBlock,
    "scale": ElementwiseBlock,
    "shift": ElementwiseBlock,
}
UNSEEN = "what its call does is seen in the first training step"


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What was declared of a type of layers.

    Attributes:
        function: What declared it, for messages.
        kind: "product" or "scale".
        weight: The attribute of the kernel or scale.
        shift: That of the bias or shift, or None.
    """

    function: str
    kind: str
    weight: str
    shift: str | None

    def part(self, layer: keras.layers.Layer) -> "Part":
        """Returns what a built layer is expected to do.

        Raises:
            ValueError: It has no such weights.
        """
        names = {id(v): name for name, v in own_weights(layer).items()}
        known: list[str | None] = []
        for attribute in (self.weight, self.shift):
            v = None if attribute is None else getattr(layer, attribute, None)
            if id(v) not in names and (v is not None or not known):
                raise ValueError(
                    f"{layer.name}: {self.function} was told that "
                    f"{attribute!r} is a trainable weight of "
                    f"{type(layer).__name__}, and it is {v!r}; its weights are "
                    f"{sorted(names.values())}."
                )
            known.append(names.get(id(v)))
        weight, shift = known
        assert weight is not None  # Else it would have been refused.
        shape = tuple(getattr(layer, self.weight).shape)
        if self.kind == "scale":
            return Part("scale", weight, View(shape), shift=shift)
        if len(shape) != 2:
            raise ValueError(
                f"{layer.name}: {self.function} takes kernels [d_in, d_out], "
                f"and {self.weight!r} has shape {shape}. Without a declaration "
                "other products are found in the layer's call."
            )
        sizes = 1, *shape
        return Part("product", weight, View(shape), (0, 1), sizes, shift)

    def check(self, layer: keras.layers.Layer, found: "OwnLayer") -> None:
        """Raises ValueError where a call does something else."""
        part = self.part(layer)
        if part.is_as((found.parts or {}).get(part.weight)):
            return
        shift = "" if part.shift is None else f" and {part.shift!r}"
        seen = [
            f"{name!r}: {found.reasons[name]}"
            for name in (part.weight, part.shift)
            if name in found.reasons
        ]
        raise ValueError(
            f"{layer.name}: {self.function} was told of a {self.kind} by "
            f"{part.weight!r}{shift}, and the call of "
            f"{type(layer).__name__} does something else with "
            f"{'; '.join(seen) or 'them'}. Without the declaration, what the "
            "call does is found in its first call."
        )


class OwnLayer:
    """What is known of how the calls of a layer use its own weights.

    It is found in the first recorded call, and must hold in all: a weight that
    is used in two operations, in one that is not understood, or another way in
    another call, has no block.

    Attributes:
        parts: By the name of its weight; None before a call.
        reasons: By the name of a weight, why it has no block.
        declared: What was declared of the layer's type, or None.
    """

    def __init__(self):
        self.parts: dict[str, Part] | None = None
        self.reasons: dict[str, str] = {}
        self.declared: Declaration | None = None
        self._said: set[str] = set()

    @staticmethod
    def of(
        layer: keras.layers.Layer, declared: Declaration | None
    ) -> "OwnLayer":
        """Returns that of a layer, which holds it."""
        known = keras_compat.own_attribute(layer, "_tfkfac_own")
        if known is None:
            known = OwnLayer()
            keras_compat.set_untracked(layer, _tfkfac_own=known)
        known.declared = declared
        return known

    def reason(self, weight: str) -> str:
        """Returns why a weight has no block."""
        if self.parts is None:
            return UNSEEN
        return self.reasons.get(
            weight, "the weight or one that goes with it is frozen"
        )

    def unsupported(self, layer: keras.layers.Layer) -> str | None:
        """As `CurvatureBlock.unsupported`."""
        del layer
        return None

    def unsupported_call(
        self, layer: keras.layers.Layer, inputs: Any
    ) -> str | None:
        """As `CurvatureBlock.unsupported_call`."""
        del layer, inputs
        return None

    def record(
        self,
        layer: keras.layers.Layer,
        call: Callable,
        keep: Callable[[LayerCall], tf.Tensor],
        inputs: Any,
        args: tuple,
        options: dict,
    ) -> Any:
        """As `CurvatureBlock.record`."""
        first, *_ = keras.tree.flatten(inputs) or [None]
        mask = keras_compat.keras_mask(first)

        def mark(use: Use, result: tf.Tensor) -> tf.Tensor:
            x, name = use.other, use.weight
            noted = LayerCall(layer, x, mask, result, name, saved=use)
            result = keep(noted)
            self._say_if_mask_is_lost(layer, noted)
            return result

        eager = tf.executing_eagerly()
        graph = None if eager else tf.compat.v1.get_default_graph()
        arguments = inputs, args, options
        watch = Watch(own_weights(layer), arguments, graph, mark)
        call = low_rank.call_of(layer) or call
        with tensorflow_compat.heard_by(watch):
            outputs = call(inputs, *args, **options)
        self._learn(watch.found(outputs))
        if self.declared is not None:
            self.declared.check(layer, self)
        return outputs

    def _say_if_mask_is_lost(self, layer, call: LayerCall) -> None:
        """Says once of a weight that it is not known which rows are masked."""
        use, name = call.saved, call.part
        if use.kind == "convolution" or call.mask is None or name in self._said:
            return  # Keras' convolutions do not look at masks.
        if use.mask(call.mask) is None:
            self._said.add(name)
            logging.warning(
                "%s: which rows of the operand of %r its mask masks is not "
                "known, for its call moves them before: all count in the "
                "curvature.",
                layer.name,
                name,
            )

    def _learn(self, uses: Mapping[str, Use | str]) -> None:
        found = {
            name: _part(use, uses)
            for name, use in uses.items()
            if isinstance(use, Use) and use.weight == name
        }
        reasons = {n: use for n, use in uses.items() if isinstance(use, str)}
        if self.parts is None:
            self.parts, self.reasons = found, reasons
            return
        for name, part in list(self.parts.items()):
            if not part.is_as(found.get(name)):
                del self.parts[name]
                for weight in filter(None, (name, part.shift)):
                    self.reasons[weight] = reasons.get(
                        weight, "its calls use it in different ways"
                    )

    def for_layer(
        self, layer: keras.layers.Layer, options: dict
    ) -> list[CurvatureBlock]:
        """As `CurvatureBlock.for_layer`: one for each part."""
        weights = own_weights(layer)
        parts = self.parts or {}
        if self.parts is None and self.declared is not None:
            part = self.declared.part(layer)
            parts = {part.weight: part}
        return [_BLOCKS[p.kind](layer, p, weights) for p in parts.values()]


def _part(use: Use, uses: Mapping[str, Use | str]) -> Part:
    shift = use.shift
    if shift is not None and uses[shift] is not use:
        shift = None  # What it is added to is used elsewhere.
    return Part(
        use.kind,
        use.weight,
        use.view,
        use.order,
        use.sizes,
        shift,
        use.window,
    )


def own_weights(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Returns a layer's own weights by name, none of the layers below it.

    The name is that of the attribute that holds a weight, with its place in a
    list or its key in a dictionary; else the weight's own name.
    """
    below = keras_compat.layers_of(layer, include_self=False)
    others = {id(v) for x in below for v in x.variables}
    left = {
        id(v): v
        for v in keras_compat.own_trainable_variables(layer)
        if id(v) not in others
    }
    found = {}
    for attribute, value in structure.own_attributes(layer):
        for name, v in _named(attribute, value):
            if id(v) in left:
                found[name] = left.pop(id(v))
    for i, v in enumerate(left.values()):
        found[f"{v.name}_{i}" if v.name in found else v.name] = v
    return found


def _named(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, keras.Variable):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for i, v in enumerate(value):
            yield f"{name}_{i}", v
    elif isinstance(value, dict):
        for key, v in value.items():
            yield f"{name}_{key}", v
