"""Which blocks are inverted in an update.

    periodic    all, every period
    staggered   each in its turn, one turn a period
    drift       every period, those whose factors have moved

At the first update, and after a change of the layers, all are inverted.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from tfkfac.blocks import CurvatureBlock
from tfkfac.distributed import assignment
from tfkfac.estimator import Estimator
from tfkfac.schedules import Period
from tfkfac.tracing import apart


class InverseSchedule:
    """All blocks are inverted when the period says so.

    Args:
        estimator: What inverts them.
        periods: Those of the optimizer, by name.
    """

    def __init__(self, estimator: Estimator, periods: Mapping[str, Period]):
        self._estimator = estimator
        self._period = periods["inverse_update_period"]

    def run(
        self,
        update: tf.Tensor,
        dampings: Mapping[str, tf.Tensor],
        cost: Callable[[], Any] = lambda: 0.0,
    ) -> None:
        """Inverts what is due.

        Args:
            update: t.
            dampings: By name.
            cost: Returns that of inverting all, over the gradient step.
        """
        forced = self._estimator.refresh_needed.value()

        def invert():
            self._invert(dampings, forced)
            self._estimator.refresh_needed.assign(False)
            self._period.done(update)
            return tf.constant(True)

        due = tf.logical_or(self._period.due(update, cost), forced)
        tf.cond(due, apart(invert), lambda: tf.constant(False))

    def _invert(self, dampings, forced):
        del forced
        self._estimator.refresh(self._estimator.blocks, dampings)


class DriftSchedule(InverseSchedule):
    """When the period says so, those are inverted whose factors have moved.

    Args:
        estimator: With `inverted`.
        periods: Those of the optimizer, by name.
        tolerance: The least movement of a factor in the Frobenius norm,
            relative to what it was when it was last inverted.
    """

    def __init__(self, estimator, periods, tolerance: float):
        super().__init__(estimator, periods)
        self._tolerance = tolerance

    def _invert(self, dampings, forced):
        estimator = self._estimator
        for block, inverted in estimator.inverted.items():

            def invert(block=block):
                estimator.invert([block], dampings)
                return tf.constant(True)

            moved = [
                _movement(factor.value(), variable.value())
                for factor, variable in zip(block.factors, inverted)
            ]
            moved = tf.reduce_max(tf.stack(moved)) > self._tolerance
            due = tf.logical_or(moved, forced)
            tf.cond(due, invert, lambda: tf.constant(False))
        # The owner alone knows which: the group fetches all.
        estimator.share(estimator.blocks)


def _movement(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
    """Returns |new - old| / |old|, Frobenius norms; infinite for old = 0."""
    moved = tf.cast(tf.norm(new - old), tf.float64)
    return moved / tf.cast(tf.norm(old), tf.float64)


class StaggeredSchedule(InverseSchedule):
    """Each block has its turn in a period, such that all updates cost alike.

    Turns are at updates without a factor update, if there are any.

    Args:
        estimator: What inverts them.
        periods: Those of the optimizer, by name; numbers.
    """

    def __init__(self, estimator, periods):
        super().__init__(estimator, periods)
        offsets = range(self._period.number)
        factors = periods["factor_update_period"].number
        known = factors and self._period.number % factors == 0
        free = [o for o in offsets if known and o % factors]
        self._turns = self._take_turns(free or list(offsets))

    def _take_turns(self, offsets: Sequence[int]) -> dict:
        """Returns the blocks of each turn; the same on any number of ranks."""
        blocks = self._estimator.blocks
        costs = [
            assignment.Item(inversion=item.inversion)
            for item in assignment.model_items(blocks, ())
        ]
        turns: dict[int, list[CurvatureBlock]] = {}
        places = assignment.assign(costs, len(offsets))
        for block, place in zip(blocks, places):
            turns.setdefault(offsets[place], []).append(block)
        return turns

    def run(self, update, dampings, cost=lambda: 0.0):
        """As `InverseSchedule.run`; turns do not depend on the cost."""
        del cost
        estimator = self._estimator

        def invert(blocks):
            estimator.refresh(blocks, dampings)
            estimator.refresh_needed.assign(False)
            return tf.constant(True)

        # By the place in the period: which turn, the last for none.
        turns = [len(self._turns)] * self._period.number
        for i, offset in enumerate(self._turns):
            turns[offset] = i

        def take_turn():
            return tf.switch_case(
                tf.gather(tf.constant(turns), update % self._period.number),
                [partial(invert, blocks) for blocks in self._turns.values()],
                default=lambda: tf.constant(False),
            )

        tf.cond(
            estimator.refresh_needed.value(),
            partial(invert, estimator.blocks),
            take_turn,
        )
