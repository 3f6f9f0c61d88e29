"""The layers of a model by path, and their places in its structure."""

import collections
import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from tfkfac import keras_compat


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
    yield from own_attributes(layer)
    # Such as are held by a set.
    yield "_layers", keras_compat.held_layers(layer)


def own_attributes(
    layer: keras.layers.Layer,
) -> list[tuple[str, Any]]:
    """Returns the attributes that Keras does not give every layer, those that
    begin with an underscore last, in the order of their names."""
    own = set(vars(layer)) - _bookkeeping()
    names = sorted(own, key=lambda name: (name.startswith("_"), name))
    # The others are what TensorFlow tracks.
    return [(n, vars(layer)[n]) for n in names if not n.startswith("_self_")]


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
