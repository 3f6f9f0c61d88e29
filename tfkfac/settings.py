"""The settings of `KFAC`: what is allowed, and what becomes of numbers."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import arguments
from tfkfac.arguments import CHOICES
from tfkfac.auto_damping import AutoDamping, EmbeddingDamping
from tfkfac.auto_period import AutoPeriod
from tfkfac.capture.distributions import Likelihood
from tfkfac.schedules import (
    Hyperparameter,
    Period,
    is_number,
    positive_integer,
    stored,
)
from tfkfac.trust_region import TrustRegion

OPTIONAL = (  # Numbers that there may be none of.
    "kl_clip",
    "norm_damping",
    "embedding_damping",
    "fallback_learning_rate",
)
STAGGERED_PERIODS = {"factor_update_period": 1, "inverse_update_period": 10}


def check(
    choices: Mapping[str, str],
    *,
    strategy: str | int,
    likelihood: Any,
    skip: Sequence[str],
    max_factor_size: int | None,
    drift_tolerance: float,
) -> None:
    """Raises ValueError, which names it, where an argument is not allowed.

    Args:
        choices: The arguments of `CHOICES` by name.
        strategy, likelihood, skip, max_factor_size, drift_tolerance: As of
            `KFAC`.
    """
    for key, value in choices.items():
        if value not in CHOICES[key]:
            raise ValueError(
                f"KFAC({key}={value!r}): must be one of {CHOICES[key]}."
            )
    if strategy not in ("owner", "replicated"):
        kind = "or 'owner' or 'replicated'"
        positive_integer("strategy", strategy, kind)
    if max_factor_size is not None:
        positive_integer("max_factor_size", max_factor_size, "or None")
    if not is_number(drift_tolerance) or not drift_tolerance >= 0:
        raise ValueError(
            f"KFAC(drift_tolerance={drift_tolerance!r}): must be a number, 0 "
            "or more."
        )
    of_outputs = [likelihood]
    if isinstance(likelihood, dict):
        of_outputs = [*likelihood.values()]
    elif isinstance(likelihood, (list, tuple)):
        of_outputs = [*likelihood]
    if not all(x is None or isinstance(x, Likelihood) for x in of_outputs):
        raise ValueError(
            f"KFAC(likelihood={likelihood!r}): must be a tfkfac.Likelihood, "
            "such as tfkfac.Categorical(), or one for each output in a list "
            "or, by name, in a dictionary."
        )
    if isinstance(skip, str) or skip is None:
        raise ValueError(f"KFAC(skip={skip!r}): must be a list of layer names.")


def check_refresh(refresh: str, period: Any) -> None:
    """Raises ValueError for turns in periods of unknown length."""
    if refresh == "staggered" and callable(period):
        raise ValueError(
            "KFAC(refresh='staggered'): inverse_update_period must be a number "
            "then, so that each layer has its turn; schedules go with "
            "refresh='periodic' or 'drift'."
        )


def periods(
    add_variable: Callable, *, refresh: str, overhead: float, **given: Any
) -> dict[str, Period]:
    """Returns the periods of numbers, schedules or "auto", by name.

    Args:
        add_variable: Of the optimizer.
        refresh: Turns need a number: "auto" is one then.
        overhead: What factors and inversions may add to a step together; half
            of it each.
        **given: `factor_update_period` and `inverse_update_period` of `KFAC`.
    """
    arguments.remark_on_periods(
        given["factor_update_period"], given["inverse_update_period"]
    )
    found: dict[str, Period] = {}
    for name, value in given.items():
        if _is_auto(value) and refresh == "staggered":
            value = STAGGERED_PERIODS[name]
        if _is_auto(value):
            share = overhead / 2
            found[name] = AutoPeriod(name, share, add_variable=add_variable)
        else:
            found[name] = Period(name, value, add_variable=add_variable)
    return found


def check_overhead(overhead: Any) -> None:
    """Raises ValueError where it is no positive number."""
    if not is_number(overhead) or not 0 < overhead < math.inf:
        raise ValueError(
            f"KFAC(overhead={overhead!r}): must be a positive number, such as "
            "0.3 for steps that take 1.3 of a gradient step."
        )


def check_fallback(fallback: str, learning_rate: Any) -> None:
    """Raises ValueError for a rate that nothing would take."""
    if fallback != "adam" and learning_rate is not None:
        raise ValueError(
            f"KFAC(fallback_learning_rate={learning_rate!r}): it is that of "
            "fallback='adam'; the plain gradient takes learning_rate."
        )


def check_replicas() -> None:
    """Raises RuntimeError under a `tf.distribute` strategy with replicas."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas > 1:
        raise RuntimeError(
            f"KFAC does not run under tf.distribute with {replicas} "
            "replicas: the factors would be those of one replica."
        )


def group_size(strategy: str | int, ranks: int) -> int:
    """Returns how many ranks hold the inverses of a block.

    Raises:
        ValueError: It does not divide the number of ranks.
    """
    if ranks == 1:
        return 1
    named = {"owner": 1, "replicated": ranks}
    size = named[strategy] if isinstance(strategy, str) else strategy
    if ranks % size:
        raise ValueError(
            f"KFAC(strategy={strategy}): groups of {size} ranks do not divide "
            f"{ranks} ranks; give a divisor of {ranks}."
        )
    return size


def hyperparameters(
    add_variable: Callable,
    *,
    damping,
    momentum,
    factor_decay,
    kl_clip,
    norm_damping,
    embedding_damping,
    fallback_learning_rate,
) -> dict[str, Hyperparameter]:
    """Returns those that are given, by name; raises ValueError as `check`."""
    positive = {
        "damping": damping,
        "kl_clip": kl_clip,
        "norm_damping": norm_damping,
        "embedding_damping": embedding_damping,
        "fallback_learning_rate": fallback_learning_rate,
    }
    not_negative = {"momentum": momentum, "factor_decay": factor_decay}
    below = {"momentum": 1, "factor_decay": 1, "kl_clip": None}
    found: dict[str, Hyperparameter] = {}
    # In one order, whatever is given: states are loaded by it.
    for name, value in {**positive, **not_negative}.items():
        number = value if is_number(value) else None
        if name == "kl_clip" and (_is_auto(value) or number is not None):
            found[name] = TrustRegion(add_variable, momentum, number)
        elif name == "damping" and _is_auto(value):
            found[name] = AutoDamping(add_variable)
        elif name == "embedding_damping" and (
            number is not None or _follows(value, damping)
        ):
            found[name] = EmbeddingDamping(
                found["damping"], add_variable, number
            )
        elif value is not None or name not in OPTIONAL:
            found[name] = Hyperparameter(
                name,
                value,
                minimum=0.0,
                exclusive=name in positive,
                below=below.get(name, math.inf),
                add_variable=add_variable,
            )
    return found


def _follows(embedding_damping, damping) -> bool:
    """Returns whether the one has a variable that follows the other's."""
    if _is_auto(damping):
        return embedding_damping is None or _is_auto(embedding_damping)
    return _is_auto(embedding_damping) and is_number(damping)


def _is_auto(value: Any) -> bool:
    """Returns whether it is "auto"; a tensor has an equality of its own."""
    return isinstance(value, str) and value == "auto"


def check_learning_rate(value: Any) -> None:
    """Raises ValueError for what no step could be made with."""
    sound = callable(value) or hasattr(value, "dtype")  # A schedule, a tensor.
    if is_number(value):
        if value > 0 and stored(value) == 0:
            raise ValueError(
                f"KFAC(learning_rate={value!r}): is 0 in "
                f"{keras.config.floatx()}: give 0, or a larger number."
            )
        sound = value >= 0 and stored(value) < math.inf
    if not sound:
        raise ValueError(
            f"KFAC(learning_rate={value!r}): must be a number, at least 0 and "
            "finite, or a schedule."
        )


def check_given_to_keras(
    learning_rate: Any, given: dict[str, Any], own: Collection[str]
) -> None:
    """Raises ValueError for arguments that Keras would take, or trip over, and
    TypeError for those that there are not.

    Args:
        learning_rate: As of `KFAC`.
        given: Its other arguments that are Keras' own.
        own: The names of its own.
    """
    arguments.check_first(learning_rate)
    arguments.check_names(given, own)
    check_learning_rate(learning_rate)
    steps = given.get("gradient_accumulation_steps")
    if steps is not None:
        positive_integer("gradient_accumulation_steps", steps, "or None")
    _check_ema(given.get("ema_momentum", 0.0))


def _check_ema(momentum: Any) -> None:
    if not (is_number(momentum) and 0 <= momentum <= 1):
        raise ValueError(
            f"KFAC(ema_momentum={momentum!r}): must be from 0 to 1."
        )


def check_keras_numbers(optimizer: keras.optimizers.Optimizer) -> None:
    """Raises ValueError for numbers that Keras takes as they are.

    A norm of 0 is refused, which would have no gradient at all.
    """
    if optimizer.use_ema:
        _check_ema(optimizer.ema_momentum)
    for name in ("weight_decay", "clipnorm", "global_clipnorm", "clipvalue"):
        value = getattr(optimizer, name)
        least = "at least 0" if name == "weight_decay" else "greater than 0"
        if value is None or value is False:
            continue
        sound = is_number(value) and value >= 0 and stored(value) < math.inf
        if not sound or (not stored(value) and "clip" in name):
            raise ValueError(
                f"KFAC({name}={value!r}): must be {least} and finite."
            )
    scale = optimizer.loss_scale_factor
    if scale is not None and not (
        is_number(scale) and 0 < stored(scale) < math.inf
    ):
        raise ValueError(
            f"KFAC(loss_scale_factor={scale!r}): must be greater than 0 and "
            "finite, or None."
        )
