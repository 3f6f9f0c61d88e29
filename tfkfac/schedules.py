"""Hyperparameters as functions of the update count."""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
    is_schedule = isinstance(
        value, keras.optimizers.schedules.LearningRateSchedule
    )
    if not is_schedule and registered is None:
        raise ValueError(
            f"KFAC({name}={value!r}) cannot be serialized: decorate it with "
            "keras.saving.register_keras_serializable, or pass a number or a "
            "keras.optimizers.schedules.LearningRateSchedule."
        )
    if not _is_function(value) and not hasattr(value, "get_config"):
        raise ValueError(
            f"KFAC({name}={value!r}) cannot be serialized: its class needs "
            "get_config and from_config."
        )
    return keras.saving.serialize_keras_object(value)


def _is_function(value: Any) -> bool:
    return callable(value) and hasattr(value, "__qualname__")


class Hyperparameter:
    """A number kept in a variable, or a schedule of the update count.

    A number can be assigned during training without retracing.

    Args:
        name: The constructor argument that it stands for, for messages.
        value: A number, or a function from the update (an int64 scalar) to a
            number, such as a `LearningRateSchedule`.
        minimum: The least number allowed.
        exclusive: Whether `minimum` itself is refused.
        add_variable: Makes the variable: `add_variable(shape=, initializer=,
            name=)`, as `keras.optimizers.Optimizer.add_variable`.
    """

    def __init__(
        self,
        name: str,
        value: float | Callable,
        *,
        minimum: float,
        exclusive: bool,
        add_variable: Callable,
    ):
        self.name = name
        self._minimum, self._exclusive = minimum, exclusive
        self._schedule = None
        self._variable = None
        if is_number(value):
            self._check(value)
            self._variable = add_variable(
                shape=(),
                # Keras' own Constant rounds to float32.
                initializer=lambda shape, dtype: tf.constant(value, dtype),
                name=name,
            )
        elif callable(value):
            self._schedule = value
        else:
            raise ValueError(
                f"KFAC({name}={value!r}): give a number or a schedule, a "
                "function from the update to a number."
            )

    def _check(self, value: float) -> None:
        low = value <= self._minimum if self._exclusive else (
            value < self._minimum
        )  # fmt: skip
        if math.isnan(value) or low:
            bound = "greater than" if self._exclusive else "at least"
            raise ValueError(
                f"KFAC({self.name}={value}): must be {bound} {self._minimum}."
            )

    def at(self, update: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """Returns the value at `update`."""
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
        self._check(float(value))
        self._variable.assign(value)

    def config(self) -> Any:
        if self._schedule is not None:
            return serialize(self.name, self._schedule)
        return float(self._variable.numpy())


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
        self._value = value
        self._last = None
        if callable(value):
            self._last = add_variable(
                shape=(),
                initializer=keras.initializers.Constant(-1),
                dtype="int64",
                name=f"last_{name}",
            )
        elif not is_number(value) or value != int(value) or value < 1:
            raise ValueError(
                f"KFAC({name}={value!r}): must be a positive integer or a "
                "schedule."
            )

    def due(self, update: tf.Tensor) -> tf.Tensor:
        """Returns a boolean scalar."""
        if self._last is None:
            return tf.equal(update % int(self._value), 0)
        last = self._last.value
        period = tf.cast(self._value(update), tf.int64)
        return tf.logical_or(last < 0, update >= last + tf.maximum(period, 1))

    def done(self, update: tf.Tensor) -> None:
        """Notes that the work was done at `update`."""
        if self._last is not None:
            self._last.assign(update)

    def config(self) -> Any:
        if self._last is None:
            return int(self._value)
        return serialize(self.name, self._value)
