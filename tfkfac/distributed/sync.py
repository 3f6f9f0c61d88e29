"""The same model and the same state on all ranks, before the first step."""

import zlib
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfkfac import keras_compat
from tfkfac.distributed.communicator import Communicator
from tfkfac.distributed.comparison import require_same
from tfkfac.distributed.loss_scale import unwrapped


def broadcast(
    model: keras.Model, optimizer, communicator: Communicator
) -> None:
    """Gives all ranks the weights and the optimizer's state of rank 0.

    What is equal on all ranks is not sent. Where all have trained and one has
    other weights, that is said.

    The states of seed generators stay each rank's own, and the sums of a window
    of micro-steps become the joint ones, as of `join_sums`. The curvature, of
    which each has another share, is not among the optimizer's variables on
    several ranks; `broadcast_curvature` is for what was loaded of it.

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
        require_same(model, optimizer, communicator)
        join_sums(optimizer, communicator)
        variables = {id(v): v for v in model.variables + optimizer.variables}
        own = {id(v) for v in [*seeds(model), *sums_of_window(optimizer)]}
        shared = [v for k, v in variables.items() if k not in own]
        _share(shared, optimizer, communicator, model.trainable_variables)
        _finish_statistics_of_data(model)


def share_trained(optimizer, communicator: Communicator) -> None:
    """Gives all ranks the weights that an optimizer trains, and its state, of
    rank 0; sums of micro-steps stay each rank's own.

    Args:
        optimizer: A built `keras.optimizers.Optimizer`.
        communicator: Over the ranks.

    Raises:
        RuntimeError: The ranks have variables of other shapes, or one has a
            state that rank 0 has not.
    """
    trained = keras_compat.trained_variables(optimizer)
    own = {id(v) for v in sums_of_window(optimizer)}
    state = [v for v in optimizer.variables if id(v) not in own]
    shapes = [(v.dtype, tuple(v.shape)) for v in trained + state]
    # What was made in a graph has no value yet.
    has_values = all(v.numpy().shape == tuple(v.shape) for v in state)
    steps = int(optimizer.iterations) if has_values else 0
    found = communicator.gather_objects(
        (shapes, has_values, steps), "comparing what is trained"
    )
    for rank, (of_rank, values, made) in enumerate(found):
        if of_rank != found[0][0]:
            raise RuntimeError(
                f"Rank {rank} trains variables of other shapes or types than "
                "rank 0: all ranks must build the same model and optimizer."
            )
        if values != found[0][1] or made > found[0][2]:
            raise RuntimeError(
                f"The optimizer of rank {rank} has another state than that of "
                f"rank 0, after {made} and {found[0][2]} steps: build it, or "
                "load its state, on all ranks before the first step."
            )
    if not has_values:
        state = []
    _share(trained + state, optimizer, communicator, trained)


def _share(variables, optimizer, communicator, trained) -> None:
    """Gives all ranks the values of rank 0; says where those of weights that
    all have trained were others.

    Args:
        variables: What is shared.
        optimizer: Its steps tell whether it has trained.
        communicator: Over the ranks.
        trained: The weights among the variables.
    """
    found = communicator.gather_objects(
        (digests(variables), int(optimizer.iterations)), "sharing the state"
    )
    ranks = differing([of_rank for of_rank, _ in found])
    if ranks:
        communicator.broadcast_variables([variables[i].value for i in ranks])
    weights = {id(v) for v in trained}
    changed = [i for i in ranks if id(variables[i]) in weights]
    if changed and min(steps for _, steps in found) > 0:
        logging.warning(
            "Rank %d had other weights than rank 0, such as %r: all ranks go "
            "on from the state of rank 0.",
            ranks[changed[0]],
            variables[changed[0]].path,
        )


def digests(variables: Sequence[keras.Variable]) -> list[int]:
    """Returns a checksum of the value of each variable."""
    return [zlib.crc32(v.numpy().reshape(-1).view("uint8")) for v in variables]


def differing(of_ranks: Sequence[Sequence[int]]) -> dict[int, int]:
    """Returns which variables are not the same on all ranks.

    Args:
        of_ranks: The checksums of each rank.

    Returns:
        The first rank that differs from rank 0, by the place of the variable.
    """
    found: dict[int, int] = {}
    for i, values in enumerate(zip(*of_ranks)):
        rank = next((r for r, x in enumerate(values) if x != values[0]), None)
        if rank is not None:
            found[i] = rank
    return found


def first_collective(optimizer) -> str:
    """Returns the name of the collective that a step begins with.

    A gather of that name meets ranks that are in a step. An optimizer that
    averages nothing has none, and is met by other gathers alone.
    """
    inner = unwrapped(optimizer)
    for owner, name in (
        (optimizer, "check_finite"),
        (inner, keras_compat.CLIPPING),
    ):
        own = keras_compat.own_attribute(owner, name)
        if hasattr(own, "collective"):
            return own.collective()
    return getattr(inner, "first_collective", None) or "tfkfac.objects"


def statistics(model: keras.Model) -> list[keras.Variable]:
    """Returns the floating-point variables that layers update by themselves:
    those that were made not to be trained, not those that are frozen."""
    trained = _made_to_be_trained(model)
    return [
        v
        for v in model.non_trainable_variables
        if id(v) not in trained and keras.backend.is_float_dtype(v.dtype)
    ]


def _finish_statistics_of_data(model):
    """Has `Normalization` take what it adapted to from its variables."""
    for layer in keras_compat.layers_of(model):
        if isinstance(layer, keras.layers.Normalization) and layer.built:
            layer.finalize_state()


def alike(model: keras.Model) -> list[keras.Variable]:
    """Returns the weights that all ranks have alike: those that layers have
    made to be trained, frozen ones too."""
    trained = _made_to_be_trained(model)
    return [v for v in model.weights if id(v) in trained]


def _made_to_be_trained(model):
    return {
        id(v)
        for layer in keras_compat.layers_of(model)
        for v in keras_compat.own_trainable_variables(layer)
    }


def seeds(model: keras.Model) -> list[keras.Variable]:
    """Returns the states of the model's seed generators."""
    return [v for v in model.variables if v.name == "seed_generator_state"]


def sums_of_window(optimizer) -> list[keras.Variable]:
    """Returns the state of an optimizer that each rank has for itself between
    the micro-steps of a window (`gradient_accumulation_steps`)."""
    inner = unwrapped(optimizer)
    own = getattr(inner, "own_of_window", [])
    return [*keras_compat.accumulated_gradients(inner), *own]


def join_sums(optimizer, communicator: Communicator) -> None:
    """Gives all ranks the joint sums of the window of micro-steps.

    The joint sum is the mean over the ranks, so that ranks with equal sums,
    such as those of a file, have the joint ones. The sums of a rank count
    where they belong to the state of rank 0: it has made as many micro-steps,
    to the same weights but for rounding. Of a flag, all ranks have to say so.

    To be called on all ranks. On one, and where nothing is accumulated, it does
    nothing.

    Args:
        optimizer: A built `keras.optimizers.Optimizer`.
        communicator: Over the ranks.
    """
    sums = sums_of_window(optimizer)
    if communicator.size == 1 or not sums:
        return
    states = communicator.gather_objects(
        _made_by(unwrapped(optimizer)),
        "joining the sums of micro-steps",
        first_collective(optimizer),
    )
    counts = [_is_same(state, states[0]) for state in states]
    share = float(counts[communicator.rank])
    for i, v in enumerate(sums):
        value = tf.cast(tf.reshape(v.value, [-1]), tf.float64)
        value = tf.math.multiply_no_nan(value, share)
        total = communicator.all_reduce(value, f"tfkfac.window.{i}")
        mean = tf.reshape(total / sum(counts), v.shape)  # Exact if all equal.
        v.assign(mean == 1 if v.dtype == "bool" else tf.cast(mean, v.dtype))


def _made_by(optimizer) -> tuple[int, np.ndarray]:
    """Returns what sums of micro-steps are of: their number, the weights.

    Of each weight, its norm and its product with a fixed vector.
    """
    sketch = []
    for v in keras_compat.trained_variables(optimizer):
        value = np.float64(v.numpy()).ravel()
        fixed = np.cos(np.arange(value.size))
        sketch.append((np.linalg.norm(value), value @ fixed))
    return keras_compat.calls_of_apply(optimizer), np.reshape(sketch, [-1, 2])


def _is_same(state, other) -> bool:
    """Ranks that compute the same may round it in ways of their own."""
    (calls, sketch), (other_calls, expected) = state, other
    if calls != other_calls or sketch.shape != expected.shape:
        return False
    norms = expected[:, :1]
    bound = 1e-3 * norms + 1e-6 * np.linalg.norm(norms)
    return bool((np.abs(sketch - expected) <= bound).all())


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
