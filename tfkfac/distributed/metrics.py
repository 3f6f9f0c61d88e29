"""Metrics of a model over all ranks: sums by counts, no means of means."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfkfac.distributed import roll_call


def over_ranks(
    model: keras.Model,
    results: Callable[[Any], Any],
    logs: Any,
    gather: Callable[[Any], list[Any]],
) -> Any:
    """Returns the logs of an epoch or an evaluation, of all ranks together.

    The state of Keras' own metrics, such as total and count, is summed over
    the ranks, and the result is that of the sums. A metric of one's own that
    updates a state of its own kind, and what a training step returns beside
    the metrics, come as the mean over the ranks.

    Args:
        model: The model, with the state of the metrics of this rank.
        results: Keras' own: returns the results of the metrics, or `logs`
            where a step returns others.
        logs: What the last step has returned.
        gather: Returns what each rank gives.

    Raises:
        RanksError: The ranks have different metrics.
    """
    own = results(logs)
    metrics = _leaves(model.metrics)
    summed = [m for m in metrics if _is_sum(m)]
    state = [v for m in summed for v in m.variables]
    values = [v.numpy() for v in state]
    numbers = {k: float(v) for k, v in own.items() if _is_number(v)}
    named = f"with metrics {[m.name for m in metrics]}"
    found = gather((named, values, numbers))
    roll_call.require_same([of_rank for of_rank, _, _ in found])
    means = {
        key: float(np.mean([other[key] for _, _, other in found]))
        for key in numbers
        if all(key in other for _, _, other in found)
    }
    if own is logs:
        return {**own, **means}
    for v, *of_ranks in zip(state, *(values for _, values, _ in found)):
        v.assign(np.sum(of_ranks, axis=0, dtype="float64"))
    joint = {
        k: float(v) if _is_number(v) else np.asarray(v)
        for k, v in results(logs).items()
    }
    for v, value in zip(state, values):
        v.assign(value)
    others = tuple(m.name for m in metrics if not _is_sum(m))
    for key in means:
        if key in others or key.endswith(tuple("_" + name for name in others)):
            joint[key] = means[key]
    return joint


def _is_number(value):
    array = np.asarray(value)
    return array.ndim == 0 and array.dtype.kind in "biuf"


def _leaves(metrics: Sequence[keras.Metric]) -> list[keras.Metric]:
    """Returns metrics, those that hold others in their stead."""
    found: list[keras.Metric] = []
    for metric in metrics:
        held = getattr(metric, "metrics", None)
        found += [metric] if held is None else _leaves(held)
    return found


def _is_sum(metric: keras.Metric) -> bool:
    """Whether the state of a metric is a sum over what it has seen."""
    if isinstance(metric, (keras.metrics.Mean, keras.metrics.Sum)):
        return True
    owner = next(c for c in type(metric).__mro__ if "update_state" in vars(c))
    return owner.__module__.split(".")[0] == "keras"
