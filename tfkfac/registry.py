"""Which block stands for which layer; how a model is covered."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from tfkfac import blocks, keras_compat, structure
from tfkfac.blocks import low_rank

_BLOCKS: dict[type, type[blocks.CurvatureBlock]] = {
    keras.layers.Dense: blocks.DenseBlock,
    keras.layers.EinsumDense: blocks.EinsumDenseBlock,
    keras.layers.Conv1D: blocks.ConvolutionBlock,
    keras.layers.Conv2D: blocks.ConvolutionBlock,
    keras.layers.Conv3D: blocks.ConvolutionBlock,
    keras.layers.Conv1DTranspose: blocks.TransposedConvolutionBlock,
    keras.layers.Conv2DTranspose: blocks.TransposedConvolutionBlock,
    keras.layers.Conv3DTranspose: blocks.TransposedConvolutionBlock,
    keras.layers.DepthwiseConv1D: blocks.DepthwiseConvolutionBlock,
    keras.layers.DepthwiseConv2D: blocks.DepthwiseConvolutionBlock,
    keras.layers.SeparableConv1D: blocks.SeparableDepthwiseBlock,
    keras.layers.SeparableConv2D: blocks.SeparableDepthwiseBlock,
    keras.layers.Embedding: blocks.EmbeddingBlock,
    keras.layers.ReversibleEmbedding: blocks.TiedEmbeddingBlock,
    keras.layers.BatchNormalization: blocks.BatchNormalizationBlock,
    keras.layers.LayerNormalization: blocks.LayerNormalizationBlock,
    keras.layers.GroupNormalization: blocks.GroupNormalizationBlock,
    keras.layers.RMSNormalization: blocks.RMSNormalizationBlock,
    keras.layers.PReLU: blocks.PReLUBlock,
    keras.layers.RNN: blocks.RecurrentBlock,
    keras.layers.SimpleRNN: blocks.RecurrentBlock,
    keras.layers.GRU: blocks.RecurrentBlock,
    keras.layers.LSTM: blocks.RecurrentBlock,
    keras.layers.ConvLSTM1D: blocks.RecurrentBlock,
    keras.layers.ConvLSTM2D: blocks.RecurrentBlock,
    keras.layers.ConvLSTM3D: blocks.RecurrentBlock,
}
_DECLARED: dict[type, blocks.Declaration] = {}

OF_MODEL = "(model)"  # In paths, what a model holds itself.


def register(
    layer_type: type[keras.layers.Layer],
    block_type: type[blocks.CurvatureBlock],
) -> None:
    """Makes `block_type` the block of layers of `layer_type`.

    Subclasses of `layer_type` are included, as long as they do not override
    `call`. A type that is registered already is given the new block.

    Raises:
        TypeError: An argument is not a class of that kind.
    """
    _require_layers("register", layer_type)
    if not (
        isinstance(block_type, type)
        and issubclass(block_type, blocks.CurvatureBlock)
    ):
        raise TypeError(
            f"register: {block_type!r} is not a subclass of "
            "tfkfac.CurvatureBlock."
        )
    _DECLARED.pop(layer_type, None)
    _BLOCKS[layer_type] = block_type


def register_linear(
    layer_type: type[keras.layers.Layer],
    kernel: str = "kernel",
    bias: str | None = None,
) -> None:
    """Declares that layers of a type have one product `x @ kernel (+ bias)`.

    What x is, and what becomes of the product, is left to the layer's `call`,
    which the first recorded call is checked against. Without a declaration
    products are found in that call; with one the blocks are there before.

    Args:
        layer_type: The type of the layers, with its subclasses as of
            `register`.
        kernel: The attribute that holds the kernel, [d_in, d_out].
        bias: The attribute that holds the bias, [d_out]; both it and what it
            holds may be None.

    Raises:
        TypeError: `layer_type` is not a class of layers.
    """
    _declare("register_linear", layer_type, "product", kernel, bias)


def register_scale(
    layer_type: type[keras.layers.Layer],
    scale: str = "gamma",
    shift: str | None = None,
) -> None:
    """Declares that layers of a type have one scale `x * scale (+ shift)`.

    As `register_linear`; the first axis of x is that of the examples. The
    block is that of normalization layers, `ScaleShiftBlock`.

    Args:
        layer_type: The type of the layers.
        scale: The attribute that holds the scale, which broadcasts to x.
        shift: The attribute that holds the shift, of the shape of the scale;
            both it and what it holds may be None.

    Raises:
        TypeError: `layer_type` is not a class of layers.
    """
    _declare("register_scale", layer_type, "scale", scale, shift)


def _declare(function, layer_type, kind, weight, shift) -> None:
    _require_layers(function, layer_type)
    _BLOCKS.pop(layer_type, None)
    _DECLARED[layer_type] = blocks.Declaration(function, kind, weight, shift)


def _require_layers(function, layer_type) -> None:
    if not (
        isinstance(layer_type, type)
        and issubclass(layer_type, keras.layers.Layer)
    ):
        raise TypeError(f"{function}: {layer_type!r} is not a class of layers.")


def block_type(
    layer: keras.layers.Layer,
) -> type[blocks.CurvatureBlock] | None:
    """Returns the block for `layer`; None if no type of it is registered."""
    return _of_type(layer, _BLOCKS)


def _of_type(layer, known):
    """Returns what is known of a layer's type, or of the parent whose `call`
    it has."""
    kind: Any = type(layer)
    for parent in kind.__mro__:
        if parent in known and kind.call is parent.call:
            return known[parent]
    return None


def recording(layer: keras.layers.Layer) -> blocks.Recording | None:
    """Returns what records the calls of a layer; None where nothing does.

    The block of its type; else, or with LoRA, what finds out how its calls use
    the weights of its own, if it has any.
    """
    known = block_type(layer)
    if known is not None and low_rank.call_of(layer) is None:
        return known
    if not keras_compat.own_trainable_variables(layer) or (
        not blocks.own_weights(layer)
    ):
        return known
    return blocks.OwnLayer.of(layer, _of_type(layer, _DECLARED))


def may_have_parts(layer: keras.layers.Layer) -> bool:
    """Whether parts were found in a layer's call, or are to be."""
    records = recording(layer)
    return isinstance(records, blocks.OwnLayer) and records.parts != {}


def in_loops(model: keras.Model) -> set[int]:
    """Returns the ids of the layers that recurrent layers call."""
    return set(_loops(keras_compat.layers_of(model)))


def what_own_layers_do(model: keras.Model) -> list:
    """Returns what changes when something else is found of a layer."""
    found = [recording(x) for x in keras_compat.layers_of(model, False)]
    return [
        (x.parts and list(x.parts))
        for x in found
        if isinstance(x, blocks.OwnLayer)
    ]


@dataclasses.dataclass
class Registration:
    """How the trainable variables of a model are covered.

    Attributes:
        blocks: The blocks, in the order of the model's layers.
        fallback: The trainable variables that no block claims.
        reasons: For each of them, why.
        paths: For each of them, the path of its layer, and its number there.
    """

    blocks: list[blocks.CurvatureBlock]
    fallback: list[keras.Variable]
    reasons: list[str]
    paths: list[str]


def register_model(
    model: keras.Model,
    skip: Sequence[str],
    unusable: dict[int, str],
    options: dict,
) -> Registration:
    """Gives every trainable variable of a built model to a block.

    Args:
        model: The model.
        skip: Names or paths of layers to leave to the fallback.
        unusable: By the id of a layer, why it can have no block.
        options: Settings of the optimizer for its blocks: `norm_curvature`,
            `tied`.

    Raises:
        ValueError: No trainable variable, or a name in `skip` is not there.
    """
    layers = structure.named_layers(model)
    names = {x.name for x in layers.values()} | set(layers)
    for name in skip:
        if name not in names:
            raise ValueError(
                f"KFAC(skip=...): {model.name!r} has no layer {name!r}; its "
                f"layers are {list(layers)}."
            )
    trainable = model.trainable_variables
    if not trainable:
        raise ValueError(
            f"{model.name!r} has no trainable variables: nothing to optimize. "
            "Set `trainable = True` on the layers to train."
        )
    free = {id(v) for v in trainable}
    unusable = {**_out_of_reach(layers.values()), **unusable}
    reasons: dict[int, str] = {}
    found: list[blocks.CurvatureBlock] = []
    made: list[blocks.CurvatureBlock]
    shared = _held_by_several(layers.values())
    skipped = {id(x) for p, x in layers.items() if p in skip or x.name in skip}
    unusable |= dict.fromkeys(skipped, "named in skip")
    loops = _loops(layers.values())
    for path, layer in layers.items():
        if id(layer) in loops:
            continue
        with_cells = [layer]
        if isinstance(layer, keras.layers.RNN):  # Its block is theirs, too.
            with_cells = keras_compat.layers_of(layer)
        own = [
            v
            for x in with_cells
            for v in keras_compat.own_trainable_variables(x)
            if id(v) in free
        ]
        if not own:
            continue
        against = [unusable[id(x)] for x in with_cells if id(x) in unusable]
        if any(len(loops.get(id(x), ())) > 1 for x in with_cells):
            against.append("it shares a cell with another recurrent layer")
        if against:
            made, reason = [], against[0]
        else:
            made, reason = _make_blocks(layer, path, free - shared, options)
        reasons.update((id(v), reason) for v in own)
        for block in made:
            found.append(block)
            free -= {id(v) for v in block.variables}
    fallback = [v for v in trainable if id(v) in free]
    seen = _seen_of_own_layers(layers.values())
    why = [
        reasons.get(id(v), "held by the model, not by a layer") or seen[id(v)]
        for v in fallback
    ]
    paths = _variable_paths({**layers, OF_MODEL: model})
    return Registration(found, fallback, why, [paths[id(v)] for v in fallback])


def _variable_paths(
    layers: dict[str, keras.layers.Layer],
) -> dict[int, str]:
    """Returns a path of each variable by its id: its first layer, a number."""
    paths: dict[int, str] = {}
    for path, layer in layers.items():
        own = keras_compat.own_trainable_variables(layer)
        for i, v in enumerate(own):
            paths.setdefault(id(v), f"{path}/variable_{i}")
    return paths


def _held_by_several(layers) -> set[int]:
    """Returns the ids of variables that are weights of several layers."""
    count = collections.Counter(
        id(v) for layer in layers for v in blocks.own_weights(layer).values()
    )
    return {key for key, n in count.items() if n > 1}


def _seen_of_own_layers(layers) -> dict[int, str]:
    """Returns, by the id of a variable, why `OwnLayer` has no block of it."""
    return {
        id(v): f"no curvature block for {type(layer).__name__}: "
        + records.reason(name)
        for layer in layers
        if isinstance(records := recording(layer), blocks.OwnLayer)
        for name, v in blocks.own_weights(layer).items()
    }


def _out_of_reach(layers) -> dict[int, str]:
    """Returns, by the id of a layer, why its calls cannot be recorded."""
    found = {}
    for layer in layers:
        if keras_compat.is_rematerialized(layer):
            for inner in keras_compat.layers_of(layer):
                found[id(inner)] = "called inside a rematerialized scope"
    return found


def _loops(layers) -> dict[int, list[keras.layers.RNN]]:
    """Returns, by the id of a layer, the recurrent layers that call it in
    their loops; of nested ones the outer one."""
    found: dict[int, list[keras.layers.RNN]] = {}
    for layer in layers:  # What holds a layer comes before it.
        if isinstance(layer, keras.layers.RNN) and id(layer) not in found:
            for inner in keras_compat.layers_of(layer, include_self=False):
                found.setdefault(id(inner), []).append(layer)
    return found


def _make_blocks(layer, path, free, options):
    """Returns (blocks, why they leave variables of the layer out)."""
    kind = type(layer).__name__
    records = recording(layer)
    if records is None:
        return [], f"no curvature block for {kind}"
    reason = records.unsupported(layer)
    if reason is not None:
        return [], reason
    made = [
        block
        for block in records.for_layer(layer, options)
        if all(id(v) in free for v in block.variables)
    ]
    for block in made:
        block.path = "/".join([path, *(p for p in block.parts[:1] if p)])
    if isinstance(records, blocks.OwnLayer):
        return made, ""  # It is another for each weight.
    if not made:
        return [], f"a variable of this {kind} is frozen or another layer's"
    return made, f"the {records.__name__} does not take it"
