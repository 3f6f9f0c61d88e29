"""Blocks whose inverse is that of their factors."""

import abc
from collections.abc import Sequence

import tensorflow as tf

from tfkfac import linalg
from tfkfac.blocks.base import CurvatureBlock
from tfkfac.factors import DiagonalFactor

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
        inverter: How it is inverted, set by `build_inverses`.
        inverses: The state of the inverter, set there too.
        failures: How many inversions failed: in a row, and in all.
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
        self.inverter = inverter
        start = inverter.start(self.factors, dtype)
        self.inverses = [add_state(name, v) for name, v in start.items()]
        name = f"{self.prefix}failures"
        self.failures = add_state(name, tf.zeros([2], tf.int64))
        return [*self.inverses, self.failures]

    def precondition(self, gradients, damping):
        V = self.to_matrix(gradients)
        state = [variable.value() for variable in self.inverses]
        U = self.inverter.precondition(V, state, damping)
        usable = linalg.all_finite([U])
        in_a_row, _ = tf.unstack(self.failures)
        usable = tf.logical_and(usable, in_a_row < MAX_FAILURES)
        # For a scalar, `tf.where` reads both and is 0.3 ms for a MiB slower.
        U = tf.raw_ops.Select(condition=usable, x=U, y=V)
        return self.from_matrix(U)
