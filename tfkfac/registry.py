"""Which block stands for which layer."""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras

from tfkfac import blocks, keras_compat

_BLOCKS: dict[type, type[blocks.CurvatureBlock]] = {
    keras.layers.Dense: blocks.DenseBlock,
    keras.layers.EinsumDense: blocks.EinsumDenseBlock,
    keras.layers.Conv1D: blocks.ConvolutionBlock,
    keras.layers.Conv2D: blocks.ConvolutionBlock,
    keras.layers.Conv3D: blocks.ConvolutionBlock,
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
}


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
    if not (
        isinstance(layer_type, type)
        and issubclass(layer_type, keras.layers.Layer)
    ):
        raise TypeError(f"register: {layer_type!r} is not a class of layers.")
    if not (
        isinstance(block_type, type)
        and issubclass(block_type, blocks.CurvatureBlock)
    ):
        raise TypeError(
            f"register: {block_type!r} is not a subclass of "
            "tfkfac.CurvatureBlock."
        )
    _BLOCKS[layer_type] = block_type


def block_type(
    layer: keras.layers.Layer,
) -> type[blocks.CurvatureBlock] | None:
    """Returns the block for `layer`; None if no type of it is registered."""
    kind: Any = type(layer)
    for parent in kind.__mro__:
        if parent in _BLOCKS and kind.call is parent.call:
            return _BLOCKS[parent]
    return None


@dataclasses.dataclass
class Registration:
    """How the trainable variables of a model are covered.

    Attributes:
        blocks: The blocks, in the order of the model's layers.
        fallback: The trainable variables that no block claims.
        reasons: For each of them, why.
    """

    blocks: list[blocks.CurvatureBlock]
    fallback: list[keras.Variable]
    reasons: list[str]


def named_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Returns the layers of a model by path, in the order that it holds them.

    A path is made of the names of the layers that hold a layer, the model left
    out: "encoder/dense". (`layer.path` of Keras is another after
    `load_model`.) A second layer of the same path is given "#2".
    """
    found: dict[str, keras.layers.Layer] = {}
    seen: set[int] = set()
    count: collections.Counter[str] = collections.Counter()

    def walk(parent, prefix):
        for layer in keras_compat.held_layers(parent):
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            path = prefix + layer.name
            count[path] += 1
            if count[path] > 1:
                path += f"#{count[path]}"
            found[path] = layer
            walk(layer, path + "/")

    walk(model, "")
    return found


def places(model: keras.Model) -> dict[str, str]:
    """Returns the place of each layer, by its path as of `named_layers`.

    A place is made as Keras names layers in `.weights.h5` files, of attributes
    and, in lists, of the class and how many of that class come before:
    "/layers/dense_1", "/encoder/layers/dense", "/blocks/block_2/attention". It
    holds no name of a layer, so that it is the same in a model that is built
    again. Of several places a layer has the first: lists of sequential and
    functional models come first, then attributes, private ones last.
    """
    left = {id(layer): path for path, layer in named_layers(model).items()}
    found = {}

    def visit(held, place, inside=()):
        if isinstance(held, keras.layers.Layer):
            if id(held) in left:
                found[left.pop(id(held))] = place
                for attribute, value in _attributes(held):
                    visit(value, f"{place}/{attribute}")
        elif isinstance(held, (list, tuple, dict)) and id(held) not in inside:
            values = held.values() if isinstance(held, dict) else held
            for label, value in _labelled(values):
                visit(value, f"{place}/{label}", (*inside, id(held)))

    for attribute, value in _attributes(model):
        visit(value, f"/{attribute}")
    return found


def _attributes(
    layer: keras.layers.Layer,
) -> Iterator[tuple[str, object]]:
    """Yields the attributes that may hold layers, in a fixed order."""
    if keras_compat.has_listed_layers(layer):
        yield "layers", layer.layers
    own = set(vars(layer)) - _bookkeeping()
    for name in sorted(own, key=lambda name: (name.startswith("_"), name)):
        if not name.startswith("_self_"):  # What TensorFlow tracks.
            yield name, vars(layer)[name]
    yield (
        "_layers",
        keras_compat.held_layers(layer),
    )  # Such as are held by a set.


@functools.cache
def _bookkeeping() -> frozenset[str]:
    """Returns the attributes that Keras gives every layer."""
    return frozenset(vars(keras.layers.Layer(name="any")))


def _labelled(values: Iterable) -> Iterator[tuple[str, object]]:
    """Yields the layers and lists among `values`, each with its label."""
    count: collections.Counter[str] = collections.Counter()
    for value in values:
        if isinstance(value, keras.layers.Layer):
            kind = _snake_case(type(value).__name__)
        elif isinstance(value, (list, tuple, dict)):
            kind = "container"
        else:
            continue
        yield f"{kind}_{count[kind]}" if count[kind] else kind, value
        count[kind] += 1


def _snake_case(name: str) -> str:
    """Returns "layer_normalization" for "LayerNormalization", as Keras does."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


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
    layers = named_layers(model)
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
    for path, layer in layers.items():
        own = [
            v
            for v in keras_compat.own_trainable_variables(layer)
            if id(v) in free
        ]
        if not own:
            continue
        if layer.name in skip or path in skip:
            made, reason = [], "named in skip"
        elif id(layer) in unusable:
            made, reason = [], unusable[id(layer)]
        else:
            made, reason = _make_blocks(layer, path, free, options)
        reasons.update((id(v), reason) for v in own)
        for block in made:
            found.append(block)
            free -= {id(v) for v in block.variables}
    fallback = [v for v in trainable if id(v) in free]
    why = [
        reasons.get(id(v), "held by the model, not by a layer")
        for v in fallback
    ]
    return Registration(found, fallback, why)


def _out_of_reach(layers) -> dict[int, str]:
    """Returns, by the id of a layer, why its calls cannot be recorded."""
    found = {}
    for layer in layers:
        if keras_compat.is_rematerialized(layer):
            for inner in keras_compat.layers_of(layer):
                found[id(inner)] = "called inside a rematerialized scope"
        if isinstance(layer, keras.layers.RNN):
            for inner in keras_compat.layers_of(layer, include_self=False):
                found[id(inner)] = "called in the loop of a recurrent layer"
    return found


def _make_blocks(layer, path, free, options):
    """Returns (blocks, why they leave variables of the layer out)."""
    kind = type(layer).__name__
    cls = block_type(layer)
    if cls is None:
        return [], f"no curvature block for {kind}"
    reason = cls.unsupported(layer)
    if reason is not None:
        return [], reason
    made = [
        block
        for block in cls.for_layer(layer, options)
        if all(id(v) in free for v in block.variables)
    ]
    for block in made:
        block.path = "/".join([path, *(p for p in block.parts[:1] if p)])
    if not made:
        return [], f"a variable of this {kind} is frozen or another layer's"
    return made, f"the {cls.__name__} does not take it"
