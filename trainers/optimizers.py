"""Optimizers and their schedules, by the names that the flags give them."""

from typing import Any

import keras
import tensorflow as tf

import tfkfac
from tfkfac import schedules
from trainers.config import Config
from trainers.refusals import base_of
from trainers.steps import Steps

_MAKERS = {
    "sgd": keras.optimizers.SGD,
    "momentum": keras.optimizers.SGD,
    "nesterov": keras.optimizers.SGD,
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "muon": keras.optimizers.Muon,
}
# Settings that `_kfac_schedules` makes arguments of.
_SCHEDULED = (
    "damping_target",
    "damping_warmup",
    "norm_damping_factor",
    "couple_momentum",
    "update_interval",
    "update_interval_after",
)

_INTERVALS = {
    "growing": tfkfac.GrowingInterval,
    "late": tfkfac.LateInterval,
}


def make(
    name: str,
    model: keras.Model | None,
    config: Config,
    settings: dict[str, Any],
    steps: Steps,
) -> keras.optimizers.Optimizer:
    """Returns the optimizer for `model`.

    On several ranks it averages the gradients over them.

    Args:
        name: As --optimizer.
        model: A built model.
        config: The flags.
        settings: Of the optimizer, by the names of the flags.
        steps: Those of the run.
    """
    name, _ = base_of(name)
    rate = learning_rate(config, settings["learning_rate"], steps)
    common = _common(config, settings)
    if name == "kfac":
        return _kfac(model, config, settings, rate, steps, common)
    arguments = {
        key: value
        for key, value in settings.items()
        if key not in ("learning_rate", "weight_decay")
    }
    if name == "nesterov":
        arguments["nesterov"] = True
    if name == "muon":
        # As its documentation asks for; its own defaults decay all weights.
        arguments["exclude_layers"] = ["logits"]
        arguments["adam_weight_decay"] = common["weight_decay"]
    micro_steps = config.gradient_accumulation_steps
    if micro_steps > 1 and callable(rate):
        rate = OfUpdates(rate, micro_steps)
    optimizer = _MAKERS[name](rate, **arguments, **common)
    if (
        config.mixed_precision == "float16"
    ):  # Else `compile` does, out of sight.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return tfkfac.distribute(optimizer)


def _common(config, settings):
    """Returns the arguments that all optimizers have."""
    decay = settings.get("weight_decay")
    if config.weight_decay_mode == "l2":
        decay = None
    common = {"weight_decay": decay or None}
    if config.gradient_accumulation_steps > 1:
        common["gradient_accumulation_steps"] = (
            config.gradient_accumulation_steps
        )
    if config.ema is not None:
        common |= {"use_ema": True, "ema_momentum": config.ema}
    return common


def _kfac(model, config, settings, rate, steps, common):
    arguments = {
        key: value
        for key, value in settings.items()
        if key not in (*_SCHEDULED, "learning_rate", "weight_decay")
    }
    arguments |= _kfac_schedules(config, settings, rate, steps)
    if arguments.get("kl_clip") == float("inf"):
        arguments["kl_clip"] = None
    if arguments.get("inverter") == "cholesky_unit_pi":
        arguments["inverter"] = tfkfac.CholeskyInverter(pi=1.0)
    if arguments.get("max_factor_size") == 0:
        arguments["max_factor_size"] = None
    strategy = str(arguments.get("strategy", "owner"))
    arguments["strategy"] = int(strategy) if strategy.isdigit() else strategy
    return tfkfac.KFAC(
        rate, **arguments, **common, seed=config.seed, model=model
    )


def learning_rate(
    config: Config, initial: float, steps: Steps
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate, a number where it is constant.

    Args:
        config: The flags; `schedule` and the `decay_` ones are read.
        initial: What it starts with.
        steps: Those of the run.
    """
    end = steps.epochs if config.decay_end is None else config.decay_end
    if config.schedule == "polynomial":
        return schedules.EpochPolynomialDecay(
            initial,
            steps.per_epoch,
            start=config.decay_start,
            end=end,
            power=config.decay_power,
        )
    if config.schedule == "linear":
        # Zhang et al. 2019, F.3: alpha (1 - (1 - gamma) t / T), then held.
        return keras.optimizers.schedules.PolynomialDecay(
            initial, steps.at_epoch(end), initial * config.decay_to, power=1.0
        )
    if config.schedule == "steps":
        at = sorted({steps.boundary(place) for place in config.decay_at})
        values = [initial * config.decay_factor**i for i in range(len(at) + 1)]
        # Keras keeps a value up to and including its boundary.
        return keras.optimizers.schedules.PiecewiseConstantDecay(
            [t - 1 for t in at], values
        )
    return initial


def _kfac_schedules(
    config: Config, settings: dict[str, Any], rate: Any, steps: Steps
) -> dict[str, Any]:
    """Returns the arguments of `KFAC` that are made of several settings.

    Args:
        config: The flags.
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
            config, settings["fallback_learning_rate"], steps
        )
    interval = _INTERVALS.get(settings.get("update_interval", "none"))
    if interval is not None:
        after = settings.get("update_interval_after", 0)
        period = interval(steps.per_epoch, after=after)
        found["factor_update_period"] = period
        found["inverse_update_period"] = period
    return found


@keras.saving.register_keras_serializable(package="trainers")
class OfUpdates(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of updates for optimizers that count micro-steps.

    Args:
        schedule: From the update to a number.
        micro_steps: In an update.
    """

    def __init__(self, schedule, micro_steps: int):
        self.schedule, self.micro_steps = schedule, micro_steps

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        return self.schedule(step // self.micro_steps)

    def get_config(self) -> dict:
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "micro_steps": self.micro_steps,
        }

    @classmethod
    def from_config(cls, config: dict):
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(schedule, config["micro_steps"])
