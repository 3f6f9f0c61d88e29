"""The schedules of Osawa et al. 2019, functions of the update count t.

An epoch has N / B updates, with N training examples and B of them in a batch:
no whole number. All numbers are computed in float64.
"""

import abc
import math

import keras
import tensorflow as tf

from tfkfac.schedules.hyperparameters import is_number, positive_integer


def _number(
    schedule,
    name: str,
    value,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
) -> float:
    """Returns the value; raises ValueError, which names it, out of bounds."""
    sound = is_number(value) and math.isfinite(value)
    if not (sound and value > above and least <= value < below):
        bounds = {"above": above, "at least": least, "below": below}
        kind = " and ".join(
            f"{word} {bound:.6g}"
            for word, bound in bounds.items()
            if math.isfinite(bound)
        )
        raise ValueError(
            f"{type(schedule).__name__}({name}={value!r}): must be a number "
            f"{kind}."
        )
    return float(value)


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A number as a function of the update, in Keras' float type."""

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the value at the update `step`, a scalar."""
        t = tf.cast(step, tf.float64)
        return tf.cast(self._value(t), keras.config.floatx())


@keras.saving.register_keras_serializable(package="tfkfac")
class WarmupDamping(_Schedule):
    """A damping that falls quickly at first (Osawa et al. 2019, 13 and 14).

        alpha = 2 log10(gamma(0) / target) / warmup_steps
        gamma(t + 1) = (1 - alpha) gamma(t) + alpha target

    which is target + (gamma(0) - target) (1 - alpha)^t. It goes on so after
    `warmup_steps`, where it is still 2.35 to 2.77 times the target with the
    settings of the paper's table 3.

    Args:
        initial: gamma(0), greater than the target. (The text after equation 14
            has it the other way round; table 3 is followed.)
        target: What it comes to, greater than 0.
        warmup_steps: A number of updates, greater than
            2 log10(gamma(0) / target).
    """

    def __init__(self, initial: float, target: float, warmup_steps: float):
        self.target = _number(self, "target", target, above=0)
        self.initial = _number(self, "initial", initial, above=target)
        least = 2 * math.log10(initial / target)
        self.warmup_steps = _number(
            self, "warmup_steps", warmup_steps, above=least
        )

    def _value(self, t):
        ratio = self.initial / self.target
        alpha = 2 * math.log10(ratio) / self.warmup_steps
        left = tf.exp(math.log1p(-alpha) * t)  # (1 - alpha)^t
        return self.target * (1 + (ratio - 1) * left)

    def get_config(self) -> dict:
        return {
            "initial": self.initial,
            "target": self.target,
            "warmup_steps": self.warmup_steps,
        }


@keras.saving.register_keras_serializable(package="tfkfac")
class EpochPolynomialDecay(_Schedule):
    """A learning rate that falls to 0 (Osawa et al. 2019, equation 15).

        eta(e) = eta(0) (1 - (e - start) / (end - start))^power

    with e the epoch t / steps_per_epoch, a fraction, held within start and end.

    Args:
        initial: eta(0).
        steps_per_epoch: The updates of an epoch, N / B.
        start: The epoch at which the decay starts.
        end: The epoch at which it would reach 0; that of the last update
            may lie before.
        power: How fast it falls.
    """

    def __init__(
        self,
        initial: float,
        steps_per_epoch: float,
        *,
        start: float,
        end: float,
        power: float,
    ):
        self.initial = _number(self, "initial", initial, above=0)
        self.steps_per_epoch = _number(
            self, "steps_per_epoch", steps_per_epoch, above=0
        )
        self.start = _number(self, "start", start, least=0)
        self.end = _number(self, "end", end, above=start)
        self.power = _number(self, "power", power, above=0)

    def _value(self, t):
        e = tf.clip_by_value(t / self.steps_per_epoch, self.start, self.end)
        left = (self.end - e) / (self.end - self.start)
        return self.initial * tf.pow(left, self.power)

    def get_config(self) -> dict:
        return {
            "initial": self.initial,
            "steps_per_epoch": self.steps_per_epoch,
            "start": self.start,
            "end": self.end,
            "power": self.power,
        }


@keras.saving.register_keras_serializable(package="tfkfac")
class CoupledMomentum(_Schedule):
    """A momentum in a fixed ratio to the learning rate (Osawa, equation 16).

        m(t) = (m(0) / eta(0)) eta(t)

    Args:
        initial: m(0), in [0, 1).
        learning_rate: eta, a schedule; eta(0) is its value at update 0.
    """

    def __init__(
        self,
        initial: float,
        learning_rate: keras.optimizers.schedules.LearningRateSchedule,
    ):
        self.initial = _number(self, "initial", initial, least=0, below=1)
        if not callable(learning_rate):
            raise ValueError(
                f"CoupledMomentum(learning_rate={learning_rate!r}): must be a "
                "schedule."
            )
        self.learning_rate = learning_rate

    def _value(self, t):
        first = tf.cast(self.learning_rate(tf.zeros_like(t)), tf.float64)
        now = tf.cast(self.learning_rate(t), tf.float64)
        return self.initial / first * now

    def get_config(self) -> dict:
        return {
            "initial": self.initial,
            "learning_rate": keras.saving.serialize_keras_object(
                self.learning_rate
            ),
        }

    @classmethod
    def from_config(cls, config: dict):
        config = dict(config)
        config["learning_rate"] = keras.saving.deserialize_keras_object(
            config["learning_rate"]
        )
        return cls(**config)


class _EpochInterval(abc.ABC):
    """A period that follows from the epochs completed, floor(t B / N).

    Args:
        steps_per_epoch: The updates of an epoch, N / B; a fraction, too.
        after: The update up to which the interval is 1 in any case.
    """

    def __init__(self, steps_per_epoch: float, after: int = 0):
        self.steps_per_epoch = _number(
            self, "steps_per_epoch", steps_per_epoch, above=0
        )
        self.after = positive_integer("after", after, least=0)

    @abc.abstractmethod
    def _interval(self, epoch: tf.Tensor) -> tf.Tensor:
        """Returns the interval after a number of epochs, int64."""

    def __call__(self, update: tf.Tensor) -> tf.Tensor:
        """Returns the interval at `update`, int64."""
        update = tf.cast(update, tf.int64)
        epoch = tf.cast(update, tf.float64) / self.steps_per_epoch
        epoch = tf.cast(epoch + 1e-9, tf.int64)  # N / B may be rounded.
        interval = self._interval(epoch)
        return tf.where(update < self.after, tf.ones_like(update), interval)

    def get_config(self) -> dict:
        return {"steps_per_epoch": self.steps_per_epoch, "after": self.after}

    @classmethod
    def from_config(cls, config: dict):
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfkfac")
class GrowingInterval(_EpochInterval):
    """min(20, 5 floor(e / 5) + 1) in epoch e (Osawa et al. 2019, eq. 20).

    To be given as both periods of `KFAC`.

    Args:
        steps_per_epoch: The updates of an epoch, N / B; a fraction, too.
        after: The update up to which the interval is 1 in any case: 500 by the
            paper's text, 0 by its equation.
    """

    def _interval(self, epoch):
        return tf.minimum(tf.constant(20, tf.int64), 5 * (epoch // 5) + 1)


@keras.saving.register_keras_serializable(package="tfkfac")
class LateInterval(_EpochInterval):
    """1 in the first 13 epochs, 20 from then on (Osawa et al. 2019, eq. 21).

    To be given as both periods of `KFAC`.

    Args:
        steps_per_epoch: The updates of an epoch, N / B; a fraction, too.
        after: The update up to which the interval is 1 in any case.
    """

    def _interval(self, epoch):
        one = tf.ones_like(epoch)
        return tf.where(epoch < 13, one, 20 * one)
