"""The state tree of a model with `KFAC`: whole, or refused."""

import json

import keras
import numpy as np
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.distributed.loss_scale import unwrapped

_OPTIMIZER = "optimizer_variables"
_KEYS = ("trainable_variables", "non_trainable_variables", _OPTIMIZER)
_PATHS = "paths"  # Beside the curvature.


def guard(attached) -> None:
    """Makes `get_state_tree` and `set_state_tree` of a model exact.

    Keras' own find variables by the names of layers, and pass over what the
    model or the tree lacks. Here the tree of a model that is compiled with the
    attached optimizer holds the curvature, and the paths of all variables in
    their order, so that a model of other names can take it. What does not fit
    is refused.

    Args:
        attached: The `AttachedModel`.
    """
    model, optimizer = attached.model, attached.optimizer
    kind = type(model)

    def is_ours():
        return unwrapped(getattr(model, "optimizer", None)) is optimizer

    def get_state_tree(value_format="backend_tensor"):
        if not is_ours():
            return kind.get_state_tree(model, value_format)
        _prepare(attached)
        with optimizer.listing_curvature(True):
            tree = kind.get_state_tree(model, value_format)
            paths = _encoded({key: _paths(model, key) for key in _KEYS})
        if value_format == "backend_tensor":
            paths = tf.constant(paths)
        own = tree[_OPTIMIZER][optimizer.name]
        own.setdefault("curvature", {})[_PATHS] = paths
        return tree

    def set_state_tree(state_tree):
        if not is_ours() or _OPTIMIZER not in state_tree:
            kind.set_state_tree(model, state_tree)
            return
        _prepare(attached)
        with optimizer.listing_curvature(True):
            kind.set_state_tree(model, _fitted(model, state_tree))

    # Not by setattr, which would have Keras track what they refer to.
    keras_compat.set_untracked(
        model, get_state_tree=get_state_tree, set_state_tree=set_state_tree
    )


def _prepare(attached):
    """Makes the curvature's variables; refuses several ranks."""
    size = attached.communicator.size
    if size > 1:
        raise RuntimeError(
            f"The curvature lies on {size} ranks, and a state tree would be "
            "without it: use tfkfac.callbacks.ModelCheckpoint, or "
            "optimizer.gather_curvature() and model.save_weights, and "
            "model.load_weights."
        )
    if attached.model.built and attached.model.trainable_variables:
        attached.register()


def _variables(model, key):
    return (
        model.optimizer.variables if key == _OPTIMIZER else getattr(model, key)
    )


def _paths(model, key):
    return [v.path for v in _variables(model, key)]


def _encoded(paths: dict) -> np.ndarray:
    return np.frombuffer(json.dumps(paths).encode(), np.uint8)


def _decoded(array) -> dict:
    return json.loads(np.asarray(array).astype(np.uint8).tobytes())


def _fitted(model: keras.Model, state_tree: dict) -> dict:
    """Returns the tree with the paths that the model's variables have.

    Raises:
        ValueError: It is not that of such a model.
    """
    flat = {
        k: keras_compat.flattened_tree(model, v) for k, v in state_tree.items()
    }
    of_optimizer = flat[_OPTIMIZER]
    for path in list(of_optimizer):
        if path.endswith("/curvature/" + _PATHS):
            saved = _decoded(of_optimizer.pop(path))
            break
    else:
        saved = {}
    for key in _KEYS:
        if key in flat:
            flat[key] = _renamed(model, key, flat[key], saved.get(key, []))
    return flat


def _renamed(model, key, given, order):
    """Returns values by the model's paths.

    Args:
        model: The model.
        key: Which of its variables they are of.
        given: The values by the paths that they had.
        order: These paths in the order of the variables; [] if not known.
    """
    variables = {v.path: v for v in _variables(model, key)}
    if set(given) == set(variables):
        order = list(variables)
    if set(order) != set(given) or len(order) != len(variables):
        only = [p for p in [*variables, *given]
                if (p in given) != (p in variables)]  # fmt: skip
        raise ValueError(
            f"set_state_tree: {key} are {len(given)} in the tree and "
            f"{len(variables)} in {model.name!r}, and {only[0]!r} is not in "
            "both: take the tree of such a model, built and attached to KFAC, "
            "or use model.save_weights and model.load_weights."
        )
    for path, (own, variable) in zip(order, variables.items()):
        shapes = tuple(np.shape(given[path])), tuple(variable.shape)
        if shapes[0] != shapes[1] or not _is_same(key, path, own):
            raise ValueError(
                f"set_state_tree: {path!r} of {key}, of shape {shapes[0]}, "
                f"stands in the place of {own!r}, of shape {shapes[1]}: the "
                "tree is of another model or setting of KFAC; build the model "
                "as it was."
            )
    return {own: given[path] for path, own in zip(order, variables)}


def _is_same(key, path, own):
    """Whether two paths are alike but for names."""
    if key != _OPTIMIZER:
        return path.rpartition("/")[2] == own.rpartition("/")[2]
    # Those of the curvature are made of places.
    places = [p.partition("/curvature/")[2] for p in (path, own)]
    return places[0] == places[1]
