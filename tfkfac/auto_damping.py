"""Damping by the units of the inputs (`damping="auto"`)."""

from collections.abc import Callable

import tensorflow as tf

from tfkfac.schedules import Hyperparameter

DAMPING = 3e-3


class AutoDamping(Hyperparameter):
    """`damping="auto"`: 0.003 by `input_units`, until a number is assigned.

    Args:
        add_variable: Makes its variables, as `Optimizer.add_variable`.
    """

    def __init__(self, add_variable: Callable):
        super().__init__(
            "damping",
            DAMPING,
            minimum=0.0,
            exclusive=True,
            add_variable=add_variable,
        )
        self._by_units = add_variable(
            shape=(), initializer="ones", dtype="bool", name="damping_by_units"
        )

    def assign(self, value: float) -> None:
        """Sets the damping, which is a number like any other from there on."""
        super().assign(value)
        self._by_units.assign(False)

    def by_units(self) -> tf.Tensor:
        return tf.cast(self._by_units.value, tf.float64)

    def config(self) -> str:
        return "auto"
