"""Numbers of `KFAC` that can be read, and assigned during training."""

import inspect
from collections.abc import Callable

import keras
import tensorflow as tf

from tfkfac import settings
from tfkfac.schedules import Hyperparameter, is_number


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

    @property
    def damping(self):
        """lambda at the next update."""
        return self.at_update("damping")

    @damping.setter
    def damping(self, value):
        self.hyperparameters["damping"].assign(value)

    @property
    def momentum(self):
        """mu at the next update."""
        return self.at_update("momentum")

    @momentum.setter
    def momentum(self, value):
        self.hyperparameters["momentum"].assign(value)

    @property
    def kl_clip(self):
        """The KL clip at the next update; None if there is none."""
        return (
            self.at_update("kl_clip")
            if "kl_clip" in self.hyperparameters
            else None
        )

    @kl_clip.setter
    def kl_clip(self, value):
        if "kl_clip" not in self.hyperparameters:
            raise TypeError(
                "KFAC was made with kl_clip=None, so that kl_clip cannot be "
                "assigned: give a number, float('inf') for no clip at first."
            )
        self.hyperparameters["kl_clip"].assign(value)

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

    @property
    def fallback_learning_rate(self):
        """Adam's rate at the next update; None if it follows eta."""
        if "fallback_learning_rate" not in self.hyperparameters:
            return None
        return self.at_update("fallback_learning_rate")

    @fallback_learning_rate.setter
    def fallback_learning_rate(self, value):
        if "fallback_learning_rate" not in self.hyperparameters:
            raise TypeError(
                "KFAC was made with fallback_learning_rate=None, so that it "
                "cannot be assigned: give a number at first."
            )
        self.hyperparameters["fallback_learning_rate"].assign(value)

    def at_update(self, name: str, dtype: tf.DType | None = None):
        """Returns the value of a hyperparameter at the next update."""
        dtype = dtype or tf.as_dtype(keras.backend.floatx())
        number = self.hyperparameters[name]
        return number.at(self.updates if number.is_scheduled else None, dtype)

    def numbers(self) -> dict[str, tf.Tensor]:
        """Returns all numbers of the next update by name, and t; scalars."""
        found = {"updates": self.updates, "learning_rate": self.learning_rate}
        for name in self.hyperparameters:
            found[name] = self.at_update(name, tf.float64)
        return {k: tf.convert_to_tensor(v) for k, v in found.items()}

    def unsound_numbers(self) -> tuple[list[str], tf.Tensor]:
        """Returns names, and which no step can be made with, [names].

        Schedules, and the learning rate, whose variable may be assigned; other
        numbers are checked where they enter.
        """
        rate = tf.cast(tf.convert_to_tensor(self.learning_rate), tf.float64)
        sound = {
            "learning_rate": tf.logical_and(tf.math.is_finite(rate), rate >= 0)
        }
        for name, number in self.hyperparameters.items():
            if number.is_scheduled:
                sound[name] = number.is_sound(self.updates)
        return list(sound), tf.logical_not(tf.stack(list(sound.values())))

    @property
    def updates(self) -> tf.Tensor:
        """t, the number of weight updates made: an int64 scalar."""
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
