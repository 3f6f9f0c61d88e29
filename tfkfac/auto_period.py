"""Periods that follow from the updates made and from what the work costs.

Work that is repeated adds to what is known of the curvature the less, the more
of it was done: at the update t it is due again after

    gap(t) = clip(GROWTH t, 1, most)    updates,

every update at first, so that no inverse of few examples serves for long. And
it is to take no more than its share of the step: with its cost c, in gradient
steps, the k-th time is due when

    k c <= share (t + HEAD_START).

Costs are counted in FLOPs (`relative_costs`), never taken from a clock, so
that a run repeats and all ranks decide alike.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from tfkfac.schedules import Period

GROWTH = 0.1
HEAD_START = 100  # Updates.
MOST = {"factor_update_period": 10, "inverse_update_period": 50}


class AutoPeriod(Period):
    """`factor_update_period="auto"` or `inverse_update_period="auto"`.

    Args:
        name: The constructor argument.
        share: Of the time of a gradient step, what the work may take.
        add_variable: As in `Hyperparameter`; keeps when, and how often.
    """

    def __init__(self, name: str, share: float, *, add_variable: Callable):
        most = MOST[name]

        def gap(update):
            t = tf.cast(update, tf.float64)
            return tf.clip_by_value(tf.math.ceil(GROWTH * t), 1, most)

        super().__init__(name, gap, add_variable=add_variable)
        self._share, self._most = share, most
        self._times = add_variable(
            shape=(),
            initializer=keras.initializers.Zeros(),
            dtype="int64",
            name=f"times_{name}",
        )

    kind = "auto"

    def due(self, update, cost=lambda: 0.0):
        times = tf.cast(self._times.value, tf.float64)
        allowed = self._share * (tf.cast(update, tf.float64) + HEAD_START)
        affordable = times * tf.cast(cost(), tf.float64) <= allowed
        due = tf.logical_and(super().due(update), affordable)
        return tf.logical_or(tf.equal(times, 0), due)

    def done(self, update):
        super().done(update)
        self._times.assign_add(1)

    @property
    def most(self):
        return self._most

    def config(self):
        return "auto"
