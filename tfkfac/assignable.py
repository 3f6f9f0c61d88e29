"""Numbers of `KFAC` that can be read, and assigned during training."""

import inspect
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tfkfac import arguments, keras_compat, settings
from tfkfac.schedules import Hyperparameter, is_number

# Arguments of `KFAC` that are no numbers, or not in variables.
FIXED = (
    "factor_update_period",
    "inverse_update_period",
    "refresh",
    "drift_tolerance",
    "fisher",
    "inverter",
    "norm_curvature",
    "tied",
    "factor_dtype",
    "communication_dtype",
    "strategy",
    "likelihood",
    "skip",
    "max_factor_size",
    "max_skipped_steps",
    "seed",
    "model",
    "loss_terms",
    "fallback",
    "overhead",
    "gradient_accumulation_steps",
)


def _assignable(name: str, text: str) -> property:
    """Returns the property that is a number, or None if there is none."""

    def get(self):
        known = name in self.hyperparameters
        return self.at_update(name) if known else None

    def set_(self, value):
        if name not in self.hyperparameters:
            like = ", float('inf') for no clip" if name == "kl_clip" else ""
            raise TypeError(
                f"KFAC was made with {name}=None, so that {name} cannot be "
                f"assigned: give a number{like} at first."
            )
        self.hyperparameters[name].assign(value)

    return property(get, set_, doc=text)


class Assignable(keras.optimizers.Optimizer):
    """The part of `KFAC` that is its numbers, as functions of the update.

    Attributes:
        hyperparameters: Numbers and schedules by name.
    """

    hyperparameters: dict[str, Hyperparameter]
    skip_counter: keras.Variable
    window_is_finite: keras.Variable
    window_divisor: keras.Variable

    @property
    def learning_rate(self):
        """eta at the next update."""
        return self._get_current_learning_rate()

    @learning_rate.setter
    def learning_rate(self, value):
        settings.check_learning_rate(value)
        keras.optimizers.Optimizer.learning_rate.fset(self, value)

    damping = _assignable("damping", "lambda at the next update.")
    momentum = _assignable("momentum", "mu at the next update.")
    factor_decay = _assignable("factor_decay", "rho at the next update.")
    kl_clip = _assignable(
        "kl_clip",
        "The KL clip at the next update, but for how it adapts then; None if "
        "there is none.",
    )
    norm_damping = _assignable(
        "norm_damping",
        "The damping of normalization layers at the next update; None if it is "
        "`damping`.",
    )
    embedding_damping = _assignable(
        "embedding_damping",
        "The damping of embeddings at the next update; None if it is that of "
        "other layers.",
    )
    fallback_learning_rate = _assignable(
        "fallback_learning_rate",
        "Adam's rate at the next update; None if it follows eta.",
    )

    def __setattr__(self, name, value):
        if keras_compat.own_attribute(self, "curvature") is not None:
            if name in FIXED:
                raise AttributeError(
                    f"KFAC({name}=...) is fixed when the optimizer is made: "
                    f"make one with {name}={value!r}."
                )
            arguments.check_assigned(self, name)
        super().__setattr__(name, value)

    @property
    def failed_inversions(self) -> dict[str, int]:
        """How many inversions failed, by the path of the block."""
        blocks = self.require_attached().layers.registration.blocks
        failures = {b.path: getattr(b, "failures", None) for b in blocks}
        return {k: int(v[1]) for k, v in failures.items() if v is not None}

    @property
    def skipped_steps(self) -> tf.Tensor:
        """The number of updates skipped for gradients that were not finite."""
        return self.skip_counter.value

    def at_update(self, name: str, dtype: tf.DType | None = None):
        """Returns the value of a hyperparameter at the next update."""
        dtype = dtype or tf.as_dtype(keras.backend.floatx())
        number = self.hyperparameters[name]
        return number.at(self.updates if number.is_scheduled else None, dtype)

    def dampings(self, dtype: tf.DType) -> dict[str, tf.Tensor]:
        """Returns lambda at the next update, by `CurvatureBlock.damping`."""
        found = {"damping": self.at_update("damping", dtype)}
        for name in ("norm_damping", "embedding_damping"):
            given = name in self.hyperparameters
            found[name] = (
                self.at_update(name, dtype) if given else found["damping"]
            )
        return found

    def numbers(self) -> dict[str, tf.Tensor]:
        """Returns all numbers of the next update by name, and t; scalars."""
        found = {"updates": self.updates, "learning_rate": self.learning_rate}
        for name in self.hyperparameters:
            found[name] = self.at_update(name, tf.float64)
        return {k: tf.convert_to_tensor(v) for k, v in found.items()}

    def unsound_numbers(self) -> tuple[list[str], tf.Tensor]:
        """Returns names, and which no step can be made with, [names].

        Numbers are checked where they enter; but there are schedules, and the
        variables can be assigned to.
        """
        values = {"learning_rate": self.learning_rate}
        bounds = [(0.0, float(np.finfo(np.float64).max))]
        for name, number in self.hyperparameters.items():
            values[name] = self.at_update(name, tf.float64)
            bounds.append(number.bounds)
        stacked = tf.stack([tf.cast(v, tf.float64) for v in values.values()])
        least, most = np.transpose(bounds)
        sound = tf.logical_and(stacked >= least, stacked <= most)
        return list(values), tf.logical_not(sound)

    @property
    def updates(self) -> tf.Tensor:
        """t, the number of weight updates made; an int64 scalar."""
        calls = tf.cast(self._iterations.value, tf.int64)
        made = calls // (self.gradient_accumulation_steps or 1)
        return made - self.skip_counter.value

    @property
    def micro_step(self) -> tf.Tensor:
        """The number of calls of `apply` towards the next update."""
        return self._iterations.value % self.gradient_accumulation_steps

    @property
    def own_of_window(self) -> list[keras.Variable]:
        """What each rank has for itself of the micro-steps so far, beside the
        sums of gradients."""
        if not self.gradient_accumulation_steps:
            return []
        return [self.window_is_finite, self.window_divisor]

    def _get_current_learning_rate(self):
        rate = self._learning_rate
        if isinstance(rate, keras.Variable):
            return rate
        schedule = keras.optimizers.schedules.LearningRateSchedule
        by_update = isinstance(rate, schedule) or _takes_argument(rate)
        value = rate(self.updates) if by_update else rate()
        if is_number(value):
            return tf.constant(value, keras.config.floatx())
        return value


def _takes_argument(function: Callable) -> bool:
    return any(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY,
                                            p.POSITIONAL_OR_KEYWORD)
        for p in inspect.signature(function).parameters.values()
    )  # fmt: skip
