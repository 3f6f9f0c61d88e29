"""Blocks whose inverse is that of their factors."""

import abc
import functools
from collections.abc import Sequence

import tensorflow as tf

from tfkfac import linalg
from tfkfac.blocks.base import CurvatureBlock
from tfkfac.factors import DiagonalFactor
from tfkfac.tracing import traced_once

MAX_FAILURES = 5  # Inversions in a row that may fail before U = V.


class FactoredBlock(CurvatureBlock):
    """A block that an `Inverter` inverts: F = A (x) G, or one factor F.

    A failed inversion (factors that are not finite or not positive definite)
    is tried again in float64 and with ten times the damping. Where that fails
    too the last good inverse stays and the factors start anew, and after
    `MAX_FAILURES` in a row U = V, until an inversion succeeds.

    Attributes:
        prefix: What the names of its state begin with, where it is one of the
            `members` of another block.
    """

    prefix = ""

    @property
    def members(self):
        return [self]

    @abc.abstractmethod
    def to_matrix(self, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns V, [groups, d_in, d_out], for gradients as `variables`."""

    @abc.abstractmethod
    def from_matrix(self, matrix: tf.Tensor) -> list[tf.Tensor]:
        """Undoes `to_matrix`."""

    def limit_factors(self, size: int) -> None:
        """Keeps only the diagonal of factors with longer sides than `size`."""
        for i, factor in enumerate(self.factors):
            if factor.dim > size and not factor.diagonal:
                self.factors[i] = DiagonalFactor(
                    factor.name,
                    factor.groups,
                    factor.dim,
                    rows_are_terms=factor.rows_are_terms,
                )

    def build_factors(self, add_state, dtype, accumulates):
        for factor in self.factors:
            factor.build(add_state, dtype, accumulates)

    def build_inverses(self, inverter, add_state, dtype):
        self._inverter = inverter
        start = inverter.start(self.factors, dtype)
        self._inverses = [add_state(name, v) for name, v in start.items()]
        # How many inversions failed: in a row, and in all.
        name = f"{self.prefix}failures"
        self.failures = add_state(name, tf.zeros([2], tf.int64))
        return [*self._inverses, self.failures]

    def problem(
        self, damping: tf.Tensor
    ) -> tuple[list[bool], list[tf.Tensor], tf.Tensor]:
        """Returns the arguments of `Inverter.invert`, the factors as they are.

        Args:
            damping: In the type of the state.
        """
        return (
            [factor.diagonal for factor in self.factors],
            [factor.value() for factor in self.factors],
            damping,
        )

    def take(
        self, values: Sequence[tf.Tensor], again: Sequence[tf.Tensor]
    ) -> tf.Tensor:
        """Takes new inverses, the first of the two that are finite.

        Returns whether the block gives up with this failure: neither is finite,
        and too often in a row.
        """
        weights = [factor.weight for factor in self.factors]
        *state, gave_up = _choose(
            [variable.value() for variable in self._inverses],
            list(values),
            list(again),
            self.failures.value(),
            [weight.value() for weight in weights],
        )
        variables = self._inverses, [self.failures], weights
        for of_kind, new in zip(variables, state):
            for variable, value in zip(of_kind, new):
                variable.assign(value)
        return gave_up

    def precondition(self, gradients, damping):
        V = self.to_matrix(gradients)
        state = [variable.value() for variable in self._inverses]
        U = self._inverter.precondition(V, state, damping)
        usable = linalg.all_finite([U])
        in_a_row, _ = tf.unstack(self.failures)
        usable = tf.logical_and(usable, in_a_row < MAX_FAILURES)
        # For a scalar, `tf.where` reads both and is 0.3 ms for a MiB slower.
        U = tf.raw_ops.Select(condition=usable, x=U, y=V)
        return self.from_matrix(U)


@traced_once
def _choose(old, first, second, failures, weights):
    """Returns (which of three inverses, [failures], weights, gave up).

    The first if they are finite, else the second if those are; where both
    failed, the old ones, and the averages of the factors start anew. Where not
    all factors have a weight, all is as it was.
    """
    known = tf.not_equal(functools.reduce(tf.multiply, weights), 0)
    good = linalg.all_finite(first)
    usable = tf.logical_or(good, linalg.all_finite(second))
    failed = tf.logical_and(known, tf.logical_not(usable))
    one = tf.cast(failed, failures.dtype)
    in_a_row, total = tf.unstack(failures)
    in_a_row = tf.where(known, one * (in_a_row + 1), in_a_row)
    usable = tf.logical_and(known, usable)
    new = [
        tf.where(usable, tf.where(good, a, b), v)
        for v, a, b in zip(old, first, second)
    ]
    keep = tf.cast(tf.logical_not(failed), weights[0].dtype)
    weights = [tf.math.multiply_no_nan(w, keep) for w in weights]
    gave_up = tf.logical_and(failed, tf.equal(in_a_row, MAX_FAILURES))
    return new, [tf.stack([in_a_row, total + one])], weights, gave_up
