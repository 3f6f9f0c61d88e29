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
        may_print: Whether the step is known to run without XLA, which cannot
            print.
    """

    may_print = False

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
        self._dtype = dtype
        start = inverter.start(self.factors, dtype)
        self._inverses = [add_state(name, v) for name, v in start.items()]
        # How many inversions failed: in a row, and in all.
        self.failures = add_state("failures", tf.zeros([2], tf.int64))
        return [*self._inverses, self.failures]

    def _problem(self, damping: tf.Tensor, dtype: tf.DType) -> tuple:
        """Returns the arguments of `Inverter.invert`."""
        return (
            [factor.diagonal for factor in self.factors],
            [tf.cast(factor.value(), dtype) for factor in self.factors],
            tf.cast(damping, dtype),
        )

    def invert(self, damping):
        return self._inverter.invert(*self._problem(damping, self._dtype))

    def _known(self):
        return tf.reduce_all([factor.known() for factor in self.factors])

    def accept(self, values):
        known = self._known()
        for variable, value in zip(self._inverses, values):
            variable.assign(tf.where(known, value, variable))
        self.failures.assign(self.failures * tf.constant([0, 1], tf.int64))

    def recover(self, values, damping):
        problem = self._problem(10 * damping, tf.float64)
        self._take(values, self._inverter.invert(*problem))

    def _take(self, values, again):
        """Takes the first of two inversions that is finite, if one is."""
        good = linalg.all_finite(values)
        again = [tf.cast(value, self._dtype) for value in again]
        known = self._known()
        usable = tf.logical_or(good, linalg.all_finite(again))
        failed = tf.cast(
            tf.logical_and(known, tf.logical_not(usable)), tf.int64
        )
        in_a_row, total = tf.unstack(self.failures)
        in_a_row = tf.where(known, failed * (in_a_row + 1), in_a_row)
        self.failures.assign([in_a_row, total + failed])
        for factor in self.factors:
            factor.restart(tf.equal(failed, 1))
        for variable, first, second in zip(self._inverses, values, again):
            value = tf.where(good, first, tf.where(usable, second, variable))
            variable.assign(tf.where(known, value, variable))
        self._warn(tf.equal(failed * in_a_row, MAX_FAILURES))

    def _warn(self, condition):
        """Says once that the block gave up."""

        def warn():
            tf.print(
                f"tfkfac: {self.path}: {MAX_FAILURES} inversions failed in a "
                "row; it takes the plain gradient until one succeeds. Raise "
                "the damping, or look for infinities in its inputs.",
                output_stream="file:///dev/stderr",
            )
            return tf.constant(True)

        if self.may_print:
            tf.cond(condition, warn, lambda: tf.constant(False))

    def precondition(self, gradients, damping):
        V = self.to_matrix(gradients)
        state = [variable.value() for variable in self._inverses]
        U = self._inverter.precondition(V, state, damping)
        usable = linalg.all_finite([U])
        usable = tf.logical_and(usable, self.failures[0] < MAX_FAILURES)
        return self.from_matrix(tf.where(usable, U, V))


def recover(
    blocks: Sequence[CurvatureBlock],
    values: Sequence[Sequence[tf.Tensor]],
    dampings: Sequence[tf.Tensor],
) -> None:
    """Calls `block.recover(values, damping)`, many at once if it can.

    Args:
        blocks, dampings: As of `invert`.
        values: What `invert` gave.
    """
    ours = [i for i, b in enumerate(blocks) if isinstance(b, FactoredBlock)]
    if ours:
        inverter = blocks[ours[0]]._inverter
        again = inverter.invert_all(
            [blocks[i]._problem(10 * dampings[i], tf.float64) for i in ours]
        )
        for i, of_block in zip(ours, again):
            blocks[i]._take(values[i], of_block)
    for i in set(range(len(blocks))) - set(ours):
        blocks[i].recover(values[i], dampings[i])


def invert(
    blocks: Sequence[CurvatureBlock], dampings: Sequence[tf.Tensor]
) -> list[list[tf.Tensor]]:
    """Returns `block.invert(damping)` for each block, many at once if it can.

    Args:
        blocks: The blocks; those of this module's kind have one inverter.
        dampings: One for each, in the type of its state.
    """
    values = [None] * len(blocks)
    for dtype in {d.dtype: None for d in dampings}:
        together = [
            i
            for i, block in enumerate(blocks)
            if isinstance(block, FactoredBlock) and dampings[i].dtype == dtype
        ]
        if not together:
            continue
        problems = [blocks[i]._problem(dampings[i], dtype) for i in together]
        found = blocks[together[0]]._inverter.invert_all(problems)
        for i, of_block in zip(together, found):
            values[i] = of_block
    return [
        block.invert(damping) if of_block is None else of_block
        for block, damping, of_block in zip(blocks, dampings, values)
    ]
