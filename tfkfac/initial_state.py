"""The same model and the same state on all ranks, before the first step."""

import keras
import tensorflow as tf

from tfkfac.communicator import Communicator


def broadcast(
    model: keras.Model, optimizer, communicator: Communicator
) -> None:
    """Gives all ranks the weights and the optimizer's state of rank 0.

    The states of seed generators stay each rank's own.

    Args:
        model: A built model.
        optimizer: A `keras.optimizers.Optimizer`, built if it is not.
        communicator: Over the ranks.

    Raises:
        RuntimeError: The ranks have different models or settings, or rank 0
            lacks a state that others have loaded.
    """
    with tf.init_scope():
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        _require_same(model, optimizer, communicator)
        variables = {id(v): v for v in model.variables + optimizer.variables}
        seeds = {id(v) for v in _seeds(model)}
        communicator.broadcast_variables(
            [v.value for k, v in variables.items() if k not in seeds]
        )


def _seeds(model):
    return [v for v in model.variables if v.name == "seed_generator_state"]


def _require_same(model, optimizer, communicator):
    """Compares what must be equal, so that ranks do not wait for ever."""
    variables = model.variables + optimizer.variables
    own = {
        # Not the paths: those of a restored model are others.
        f"{i}. variable, {'/'.join(v.path.split('/')[-2:])}": (
            f"{v.dtype} {tuple(v.shape)}"
        )
        for i, v in enumerate(variables[: len(model.variables)])
    }
    own["number of variables"] = len(variables)
    own["optimizer"] = type(optimizer).__name__
    own["settings"] = getattr(optimizer, "settings_of_ranks", dict)()
    found = communicator.gather_objects(own)
    for rank, other in enumerate(found):
        for key in {**found[0], **other}:
            if other.get(key) != found[0].get(key):
                raise RuntimeError(
                    f"Rank {rank} differs from rank 0 in its {key}: "
                    f"{other.get(key)} against {found[0].get(key)}. All ranks "
                    "must build the same model and optimizer."
                )


def broadcast_curvature(curvature, communicator: Communicator) -> None:
    """Gives all ranks the curvature that rank 0 has loaded.

    Raises:
        RuntimeError: Others have loaded one, and rank 0 has not.
    """
    with tf.init_scope():
        loaded = communicator.gather_objects(curvature.loaded is not None)
        if any(loaded) and not loaded[0]:
            raise RuntimeError(
                f"Rank {loaded.index(True)} has loaded the state of the "
                "optimizer, and rank 0 has not: load it on rank 0, or on all."
            )
        if not all(loaded) and loaded[0]:
            values = communicator.broadcast_object(curvature.loaded)
            if curvature.loaded is None:
                curvature.load(values)
        curvature.loaded = None
