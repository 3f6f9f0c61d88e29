"""Schedules as the flags ask for them."""

from typing import Any

import keras

import tfkfac
from tfkfac import schedules
from trainers.steps import Steps

_INTERVALS = {
    "growing": tfkfac.GrowingInterval,
    "late": tfkfac.LateInterval,
}


def learning_rate(
    args, initial: float, steps: Steps
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate, a number where it is constant.

    Args:
        args: The flags; `schedule` and the `decay_` ones are read.
        initial: What it starts with.
        steps: Those of the run.
    """
    end = steps.epochs if args.decay_end is None else args.decay_end
    if args.schedule == "polynomial":
        return schedules.EpochPolynomialDecay(
            initial,
            steps.per_epoch,
            start=args.decay_start,
            end=end,
            power=args.decay_power,
        )
    if args.schedule == "linear":
        # Zhang et al. 2019, F.3: alpha (1 - (1 - gamma) t / T), then held.
        return keras.optimizers.schedules.PolynomialDecay(
            initial, steps.at_epoch(end), initial * args.decay_to, power=1.0
        )
    if args.schedule == "steps":
        at = sorted({steps.boundary(place) for place in args.decay_at})
        values = [initial * args.decay_factor**i for i in range(len(at) + 1)]
        # Keras keeps a value up to and including its boundary.
        return keras.optimizers.schedules.PiecewiseConstantDecay(
            [t - 1 for t in at], values
        )
    return initial


def kfac(
    args, settings: dict[str, Any], rate: Any, steps: Steps
) -> dict[str, Any]:
    """Returns the arguments of `KFAC` that are made of several settings.

    Args:
        args: The flags.
        settings: Of the optimizer, by the names of the flags.
        rate: The learning rate.
        steps: Those of the run.
    """
    found = {}
    factor = settings.get("norm_damping_factor")
    if "damping" in settings:
        initial, target = settings["damping"], settings.get("damping_target")

        def damping(scale):
            if target is None:
                return scale * initial
            return schedules.WarmupDamping(
                scale * initial, scale * target, settings["damping_warmup"]
            )

        found["damping"] = damping(1)
        if factor is not None:
            found["norm_damping"] = damping(factor)
    if settings.get("couple_momentum") and callable(rate):
        found["momentum"] = schedules.CoupledMomentum(
            settings["momentum"], rate
        )
    if settings.get("fallback_learning_rate") is not None:
        found["fallback_learning_rate"] = learning_rate(
            args, settings["fallback_learning_rate"], steps
        )
    interval = _INTERVALS.get(settings.get("update_interval"))
    if interval is not None:
        after = settings.get("update_interval_after", 0)
        period = interval(steps.per_epoch, after=after)
        found["factor_update_period"] = period
        found["inverse_update_period"] = period
    return found
