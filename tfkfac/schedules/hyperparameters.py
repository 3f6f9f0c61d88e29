"""Numbers and schedules as arguments of `KFAC`."""

import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any, TypeGuard

import keras
import numpy as np
import tensorflow as tf


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def stored(value: float) -> float:
    """Returns a number as the type of Keras' variables rounds it."""
    with np.errstate(over="ignore"):
        return float(np.dtype(keras.config.floatx()).type(value))


def is_schedule(value: Any) -> TypeGuard[Callable]:
    """Returns whether a value is a function that can be given the update."""
    if not callable(value):
        return False
    try:
        inspect.signature(value).bind(0)
    except TypeError:
        return False
    except ValueError:  # It is none of Python.
        pass
    return True


def serialize(name: str, value: Any) -> Any:
    """Returns the configuration of a number, a schedule or a Keras object.

    Raises:
        ValueError: `value` could not be restored from a configuration; the
            message names the argument.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    registered = keras.saving.get_registered_object(
        keras.saving.get_registered_name(
            value if isinstance(value, type) or _is_function(value)
            else type(value)
        )
    )  # fmt: skip
    builtin = type(value).__module__.split(".")[0] == "keras"
    if not builtin and registered is None:
        raise ValueError(
            f"KFAC({name}={value!r}) cannot be serialized: decorate it with "
            "keras.saving.register_keras_serializable, or pass a number or a "
            "keras.optimizers.schedules.LearningRateSchedule."
        )
    try:
        return keras.saving.serialize_keras_object(value)
    except (NotImplementedError, TypeError, AttributeError) as error:
        raise ValueError(
            f"KFAC({name}={value!r}) cannot be serialized: its class needs "
            "get_config and from_config."
        ) from error


def _is_function(value: Any) -> bool:
    return callable(value) and hasattr(value, "__qualname__")


def positive_integer(
    name: str, value: Any, more: str = "", least: int = 1, of: str = "KFAC"
) -> int:
    """Returns `value` as an int; raises ValueError that names it.

    Args:
        name: The argument.
        value: What it is.
        more: What else it may be.
        least: 1 or 0.
        of: Whose argument it is.
    """
    whole = is_number(value) and math.isfinite(value) and value == int(value)
    if not whole or not least <= value < 2**63:
        kind = "a positive integer" if least == 1 else "an integer, 0 or more"
        if whole and value > 0:
            kind += ", below 2**63"
        raise ValueError(
            f"{of}({name}={value!r}): must be {kind}{more and ' ' + more}."
        )
    return int(value)


def _as_float(value: Any) -> float:
    """Returns a number or a tensor as it is; NaN, which no number is allowed to
    be, for anything else."""
    if value is None or isinstance(value, (bool, str, bytes)):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


class Hyperparameter:
    """A number kept in a variable, or a schedule of the update count.

    A number can be assigned during training without retracing.

    Args:
        name: The constructor argument that it stands for, for messages.
        value: A number, or a function from the update (an int64 scalar) to a
            number, such as a `LearningRateSchedule`.
        minimum: The least number allowed.
        exclusive: Whether `minimum` itself is refused.
        below: What the number is less than; None for no bound, so that it may
            be infinite.
        add_variable: Makes the variable: `add_variable(shape=, initializer=,
            name=)`, as `keras.optimizers.Optimizer.add_variable`.

    Attributes:
        follower: What has `follow()`, for when a number is assigned; or None.
    """

    follower: Any = None

    def __init__(
        self,
        name: str,
        value: float | Callable,
        *,
        minimum: float,
        exclusive: bool,
        below: float | None = math.inf,
        add_variable: Callable,
    ):
        self.name = name
        self._minimum, self._exclusive = minimum, exclusive
        self._below = below
        self._schedule: Callable | None = None
        self._variable: Any = None
        if isinstance(value, numbers.Real) and is_number(value):
            self._check(value, value)
            self._variable = add_variable(
                shape=(),
                # Keras' own Constant rounds to float32.
                initializer=lambda shape, dtype: tf.constant(value, dtype),
                name=name,
            )
        elif is_schedule(value):
            self._schedule = value
        else:
            raise ValueError(
                f"KFAC({name}={value!r}): give a number or a schedule, a "
                "function from the update to a number."
            )

    def _check(self, value: float, shown: Any) -> None:
        """Raises ValueError, which shows what was given, out of the range; such
        as where its variable would round it to the bound."""
        value_fits = self._is_allowed(value)
        if not value_fits or not self._is_allowed(stored(value)):
            bound = "greater than" if self._exclusive else "at least"
            above = "and finite" if self._below == math.inf else (
                f"and less than {self._below}"
            )  # fmt: skip
            raise ValueError(
                f"KFAC({self.name}={shown!r}): must be {bound} {self._minimum}"
                + (f" {above}" if self._below is not None else "")
                + (f", in {keras.config.floatx()}." if value_fits else ".")
            )

    def _is_allowed(self, value: float) -> bool:
        least, most = self.bounds
        return least <= value <= most  # NaN is not.

    @property
    def kind(self) -> str:
        return "a schedule" if self.is_scheduled else "a number"

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest number that are allowed."""
        tiny = float(np.finfo(np.float64).tiny)
        least = self._minimum + (tiny if self._exclusive else 0)
        if self._below is None:
            return least, math.inf
        return least, float(np.nextafter(self._below, 0))

    @property
    def is_scheduled(self) -> bool:
        return self._schedule is not None

    def at(self, update: tf.Tensor | None, dtype: tf.DType) -> tf.Tensor:
        """Returns the value at `update`, which may be None for a number."""
        if self._schedule is not None:
            value = self._schedule(update)
            if is_number(value):  # A cast would go by way of float32.
                return tf.constant(value, dtype)
            return tf.cast(value, dtype)
        return tf.cast(self._variable.value, dtype)

    def assign(self, value: float) -> None:
        """Sets the number; raises TypeError where a schedule was given."""
        if self._variable is None:
            raise TypeError(
                f"KFAC({self.name}=...) was given a schedule, so that "
                f"{self.name} cannot be assigned; give a number."
            )
        if not tf.is_symbolic_tensor(value):  # Which the update checks.
            self._check(_as_float(value), value)
        self._variable.assign(value)
        if self.follower is not None:
            self.follower.follow()

    @property
    def number(self) -> float:
        """The number, outside a graph."""
        return float(self._variable.numpy())

    def config(self) -> Any:
        if self._schedule is not None:
            return serialize(self.name, self._schedule)
        return self.number


class Period:
    """When a recurring piece of work is due.

    With a number p: at the updates 0, p, 2p, ... With a schedule: p(t) or more
    updates after the last time.

    Args:
        name: The constructor argument, for messages.
        value: A positive integer, or a schedule of them.
        add_variable: As in `Hyperparameter`; keeps the last time.
    """

    def __init__(
        self, name: str, value: int | Callable, *, add_variable: Callable
    ):
        self.name = name
        self._schedule: Callable | None = None
        self._number = 1
        self._last: Any = None
        if is_schedule(value):
            self._schedule = value
            self._last = add_variable(
                shape=(),
                initializer=keras.initializers.Constant(-1),
                dtype="int64",
                name=f"last_{name}",
            )
        else:
            self._number = positive_integer(name, value, "or a schedule")

    @property
    def kind(self) -> str:
        return "a number" if self._schedule is None else "a schedule"

    @property
    def number(self) -> int | None:
        """The number of updates; None for a schedule."""
        return None if self._schedule is not None else self._number

    @property
    def most(self) -> int | None:
        """The longest that is known to come; None for a schedule."""
        return self.number

    def due(
        self, update: tf.Tensor, cost: Callable[[], Any] = lambda: 0.0
    ) -> tf.Tensor:
        """Returns a boolean scalar.

        Args:
            update: t.
            cost: Returns that of the work, over a gradient step's; what is
                given, a number or a schedule, does not ask for it.
        """
        del cost
        if self._schedule is None:
            return tf.equal(update % self._number, 0)
        last = tf.cast(self._last.value, tf.float64)
        period = tf.math.ceil(tf.cast(self._schedule(update), tf.float64))
        waits = tf.cast(update, tf.float64) < last + tf.maximum(period, 1)
        return tf.logical_or(last < 0, tf.logical_not(waits))  # Not for NaN.

    def done(self, update: tf.Tensor) -> None:
        """Notes that the work was done at `update`."""
        if self._last is not None:
            self._last.assign(update)

    def config(self) -> Any:
        if self._schedule is None:
            return self._number
        return serialize(self.name, self._schedule)
