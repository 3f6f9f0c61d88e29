"""Optimizers by the name that --optimizer gives them."""

from typing import Any

import keras
import tensorflow as tf

import tfkfac
from trainers import schemes
from trainers.flag_definitions import WITHOUT_MOMENTUM
from trainers.steps import Steps

_MAKERS = {
    "sgd": keras.optimizers.SGD,
    "momentum": keras.optimizers.SGD,
    "nesterov": keras.optimizers.SGD,
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "muon": keras.optimizers.Muon,
}
# Settings that `schemes.kfac` makes arguments of.
_IN_SCHEMES = (
    "damping_target",
    "damping_warmup",
    "norm_damping_factor",
    "couple_momentum",
    "update_interval",
    "update_interval_after",
)


def make(
    name: str, model: keras.Model, args, settings: dict[str, Any], steps: Steps
) -> keras.optimizers.Optimizer:
    """Returns the optimizer for `model`.

    On several ranks it averages the gradients over them.

    Args:
        name: As --optimizer.
        model: A built model.
        args: The flags.
        settings: Of the optimizer, by the names of the flags.
        steps: Those of the run.
    """
    name, _ = WITHOUT_MOMENTUM.get(name, (name, {}))
    rate = schemes.learning_rate(args, settings["learning_rate"], steps)
    common = _common(args, settings)
    if name == "kfac":
        return _kfac(model, args, settings, rate, steps, common)
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
    micro_steps = args.gradient_accumulation_steps
    if micro_steps > 1 and callable(rate):
        rate = OfUpdates(rate, micro_steps)
    optimizer = _MAKERS[name](rate, **arguments, **common)
    if args.mixed_precision == "float16":  # Else `compile` does, out of sight.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return tfkfac.distribute(optimizer)


def _common(args, settings):
    """Returns the arguments that all optimizers have."""
    decay = settings.get("weight_decay")
    if args.weight_decay_mode == "l2":
        decay = None
    common = {"weight_decay": decay or None}
    if args.gradient_accumulation_steps > 1:
        common["gradient_accumulation_steps"] = args.gradient_accumulation_steps
    if args.ema is not None:
        common |= {"use_ema": True, "ema_momentum": args.ema}
    return common


def _kfac(model, args, settings, rate, steps, common):
    arguments = {
        key: value
        for key, value in settings.items()
        if key not in (*_IN_SCHEMES, "learning_rate", "weight_decay")
    }
    arguments |= schemes.kfac(args, settings, rate, steps)
    if arguments.get("kl_clip") == float("inf"):
        arguments["kl_clip"] = None
    if arguments.get("inverter") == "cholesky_unit_pi":
        arguments["inverter"] = tfkfac.CholeskyInverter(pi=1.0)
    if arguments.get("max_factor_size") == 0:
        arguments["max_factor_size"] = None
    strategy = str(arguments.get("strategy", "owner"))
    arguments["strategy"] = int(strategy) if strategy.isdigit() else strategy
    return tfkfac.KFAC(rate, **arguments, **common, seed=args.seed, model=model)


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
