"""The step as a graph, beside the one of eager mode that was checked."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.attached_model import AttachedModel
from tfkfac.verification.findings import (
    TOLERANCE,
    Finding,
    failed,
    judged,
    note,
    of_model,
)
from tfkfac.verification.observer import owned_blocks
from tfkfac.verification.outcome import Outcome
from tfkfac.verification.snapshot import same_random_numbers
from tfkfac.verification.use import Array, in_float64

CHECK = "graph"
_WEIGHTS = 0.05  # Inverses make more of rounding than factors do.


def weights(attached: AttachedModel) -> dict[str, Array]:
    """Returns the weights by path."""
    return {
        v.path: in_float64(keras_compat.tensorflow_variable(v))
        for v in attached.model.trainable_variables
    }


def check(
    step: Callable[[Any], Any],
    data: Any,
    base: dict[AttachedModel, Outcome],
    after: dict[AttachedModel, dict[str, Array]],
    restore: Callable[[], None],
) -> list[Finding]:
    """Compares factors and weights after a step of the graph.

    Args:
        step: The training step.
        data: What it takes.
        base: What came of the eager step, by optimizer.
        after: The weights after it.
        restore: Puts all back.
    """
    attached = list(base)
    optimizers = [a.optimizer for a in attached]
    if any(o.gradient_accumulation_steps for o in optimizers):
        return [note(CHECK, "", "not compared, for gradients are accumulated.")]
    before = {a: weights(a) for a in attached}
    function = tf.function(step)
    with same_random_numbers():  # What has none draws others the second time.
        outcomes = [
            _outcome(function, data, attached, restore) for _ in range(2)
        ]
    result = []
    for a in attached:
        (factors, moved, made), (_, again, _) = (o[a] for o in outcomes)
        if made != 1:
            reason = f"the step makes {made} updates."
        elif _difference(before[a], moved, again) > TOLERANCE:
            reason = "it draws random numbers that cannot be drawn again."
        else:
            reason, found = "", _compared(base[a], factors)
            found.append(_moved(before[a], after[a], moved))
        if reason:
            found = [note(CHECK, "", f"not compared: {reason}")]
        result += of_model(a.model, found, len(attached) > 1)
    return result


def _outcome(function, data, attached, restore) -> dict:
    """Returns, after a step, (factors, weights, number of updates)."""
    try:
        counts = {a: int(a.optimizer.updates) for a in attached}
        for a in attached:
            for block in owned_blocks(a):
                for factor in block.factors:
                    factor.weight.assign(tf.zeros_like(factor.weight))
            a.layers.estimator.refresh_needed.assign(True)
        function(data)
        return {
            a: (
                {
                    block.path: [in_float64(f.value()) for f in block.factors]
                    for block in owned_blocks(a)
                },
                weights(a),
                int(a.optimizer.updates) - counts[a],
            )
            for a in attached
        }
    finally:
        restore()


def _difference(before, first, second) -> float:
    """Returns how far two steps are apart, relative to the first."""
    apart = sum(np.sum((first[k] - second[k]) ** 2) for k in before)
    size = sum(np.sum((first[k] - before[k]) ** 2) for k in before)
    return float(np.sqrt(apart / size)) if size else float(apart > 0)


def _compared(base: Outcome, factors) -> list[Finding]:
    absent = sorted({path for path, _ in base.factors} - set(factors))
    of_graph = {
        (path, i): x
        for path, found in factors.items()
        for i, x in enumerate(found)
    }
    other = dataclasses.replace(base, factors=of_graph)
    present = {k: x for k, x in base.factors.items() if k in of_graph}
    base = dataclasses.replace(base, factors=present)
    return [
        *(failed(CHECK, path, _NO_FACTORS) for path in absent),
        *base.compare_factors(CHECK, other, _OTHER),
    ]


def _moved(before, after, moved) -> Finding:
    error = _difference(before, after, moved)
    return judged(CHECK, "weights", error, _OTHER_WEIGHTS, bound=_WEIGHTS)


_NO_FACTORS = (
    "it has no factors in the graph: its layer is called inside a loop, a "
    "tf.function of its own or a rematerialized scope."
)
_OTHER = (
    "in a graph it is to be as in eager mode: look for Python state that the "
    "layer's call changes."
)
_OTHER_WEIGHTS = (
    "the weights after a step of the graph are others than after an eager "
    "step: look for Python state that the training step changes."
)
