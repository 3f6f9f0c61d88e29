"""Statistics -> factors -> inverses -> preconditioned gradients."""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from tfkfac import inversion
from tfkfac.blocks import CurvatureBlock, LayerCall, Moment
from tfkfac.blocks.factored import FactoredBlock
from tfkfac.distributed.distributor import Distributor
from tfkfac.inverters import Inverter
from tfkfac.readings import Readings
from tfkfac.state import Curvature


class Estimator:
    """The blocks of a model at work.

    Args:
        blocks: The blocks.
        distributor: Which of them are this rank's, and how it gets the rest.
        inverter: How they are inverted.
        curvature: Where their state lies.
        factor_dtype: The type of the factor products; float32 stands for the
            variable's own where that is wider.
        accumulates: Whether statistics are summed over micro-steps.
        keep_inverted: Whether each factor is kept as it was when it was last
            inverted.
        other_names: Of what else is kept in `curvature`.

    Attributes:
        blocks: The blocks.
        distributor: The distributor.
        refresh_needed: Whether all blocks are to be inverted at the next
            update, whatever its number: a boolean variable.
        may_print: Whether the step is known to run without XLA, which cannot
            print.
        inverted: Factors as last inverted, for the blocks that this rank owns.
        readings: What steps note for a callback; None where none watches.
    """

    def __init__(
        self,
        blocks: Sequence[CurvatureBlock],
        distributor: Distributor,
        inverter: Inverter,
        curvature: Curvature,
        factor_dtype: str,
        accumulates: bool = False,
        keep_inverted: bool = False,
        other_names: Sequence[str] = (),
    ):
        self.blocks = list(blocks)
        self.distributor = distributor
        self.may_print = False
        self.readings: Readings | None = None
        self._inverter = inverter
        self._factor_dtype = tf.as_dtype(factor_dtype)
        # By block, N or R of each sum over micro-steps.
        self._divisors: dict[CurvatureBlock, tf.Variable] = {}
        # By block, what U takes, for those that this rank preconditions.
        self._inverses: dict[CurvatureBlock, list[tf.Variable]] = {}
        self.inverted: dict[CurvatureBlock, list[tf.Variable]] = {}
        # Not of the state: what `inversion` has named on stderr.
        self._named: dict[FactoredBlock, tf.Variable] = {}
        names = ["refresh_needed"]
        self.refresh_needed = curvature.add("refresh_needed", tf.constant(True))
        for block in self.blocks:

            def add_state(name, initial, path=block.path):
                names.append(f"{path}/{name}")
                return curvature.add(names[-1], initial)

            dtype = state_dtype(block.variables[0])
            if distributor.owns(block):
                with tf.init_scope():
                    for member in block.members:
                        self._named[member] = tf.Variable(False, False)
                block.build_factors(add_state, dtype, accumulates)
                if accumulates:
                    zero = tf.zeros([len(block.sums)], dtype)
                    self._divisors[block] = add_state("divisors", zero)
                if keep_inverted:
                    self.inverted[block] = [
                        add_state(
                            f"{f.name}/inverted", tf.zeros(f.shape, dtype)
                        )
                        for f in block.factors
                    ]
            if distributor.holds(distributor.block_owners[block]):
                self._inverses[block] = block.build_inverses(
                    inverter, add_state, dtype
                )
        curvature.keep([*names, *other_names])
        if curvature.fresh:
            self.refresh_needed.assign(True)
            curvature.fresh = False

    def update_factors(
        self,
        moments: Mapping[CurvatureBlock, list[Moment]],
        count: tf.Tensor,
        decay: tf.Tensor,
    ) -> None:
        """Takes the statistics of a step into the factors.

        A factor is A = (1 / N) sum a a^T or G = (1 / R) sum g g^T, with N the
        number of loss terms and R that of the block's rows.

        Args:
            moments: Those of this rank, for the blocks that V is of.
            count: N of this rank.
            decay: rho.
        """
        moments, count = self._reduced(moments, count)
        for block, of_block in moments.items():
            totals = [moment.total for moment in of_block]
            divisors = self._divisors_of(block, of_block, count)
            self._take(block, totals, divisors, decay)

    def _reduced(self, moments, count):
        """Returns (moments of this rank's blocks over all ranks, N)."""
        for block, found in moments.items():
            for total, moment in zip(block.sums, found):
                if moment.total.shape != total.shape:
                    moment.total = tf.ensure_shape(moment.total, total.shape)
        return self.distributor.reduce_moments(moments, count)

    def moments_of(
        self, block: CurvatureBlock, calls: Sequence[LayerCall]
    ) -> list[Moment]:
        """Returns the moments of a block over calls with their gradients."""
        dtype = state_dtype(block.variables[0])
        product_dtype = self._factor_dtype
        if product_dtype == tf.float32:
            product_dtype = dtype
        return block.moments(calls, product_dtype, dtype)

    @staticmethod
    def _divisors_of(block, moments, count):
        """Returns N or R of each sum of a block."""
        return [
            tf.cast(count if s.rows_are_terms else m.rows, m.total.dtype)
            for s, m in zip(block.sums, moments)
        ]

    def _take(self, block, totals, divisors, decay):
        if self.readings is not None:
            self.readings.note_rows(block, divisors)
        # Without rows or terms X is NaN, which the factor leaves out.
        means = [total / divisor for total, divisor in zip(totals, divisors)]
        for factor, X in zip(block.factors, block.combine(means, divisors)):
            factor.update(X, tf.cast(decay, X.dtype))

    def accumulate(
        self,
        moments: Mapping[CurvatureBlock, list[Moment]],
        count: tf.Tensor,
        started: tf.Tensor,
    ) -> None:
        """Adds the statistics of a micro-step.

        Args:
            moments: Those of this rank, for the blocks that V is of.
            count: N of the micro-step.
            started: Whether there are statistics to add them to.
        """
        moments, count = self._reduced(moments, count)
        for block, of_block in moments.items():
            divisor = self._divisors[block]
            counts = self._divisors_of(block, of_block, count)
            for factor, moment in zip(block.sums, of_block):
                factor.accumulate(moment.total, started)
            divisor.assign(tf.where(started, divisor, 0) + tf.stack(counts))

    def finish(self, decay: tf.Tensor) -> None:
        """Takes the sums over the micro-steps into the factors."""
        for block, divisors in self._divisors.items():
            totals = [factor.take_sum() for factor in block.sums]
            self._take(block, totals, tf.unstack(divisors), decay)

    def discard(self) -> None:
        """Forgets the sums over the micro-steps."""
        for block in self._divisors:
            for factor in block.sums:
                factor.take_sum()

    def refresh(
        self,
        blocks: Sequence[CurvatureBlock],
        dampings: Mapping[str, tf.Tensor],
    ) -> None:
        """Inverts blocks, each with its damping by name, where they are due.

        All ranks call it with the same blocks; those that this rank owns are
        inverted here, and what others of its group have inverted is fetched.
        """
        owned = [b for b in blocks if self.distributor.owns(b)]
        if owned:
            self.invert(owned, dampings)
        elif self.readings is not None:
            self.readings.count("inversions")  # Of others, for which it waits.
        self.share(blocks)

    def share(self, blocks: Sequence[CurvatureBlock]) -> None:
        """Fetches the inverses of blocks from their owners in the group."""
        self.distributor.share_inverses(
            {b: v for b, v in self._inverses.items() if b in blocks}
        )

    def invert(
        self,
        blocks: Sequence[CurvatureBlock],
        dampings: Mapping[str, tf.Tensor],
    ) -> None:
        """Inverts blocks that this rank owns, with their dampings by name."""
        types = {b: state_dtype(b.variables[0]) for b in blocks}
        for dtype in dict.fromkeys(types.values()):
            inversion.invert(
                [m for b in blocks if types[b] == dtype for m in b.members],
                self._inverter,
                {name: tf.cast(x, dtype) for name, x in dampings.items()},
                self._named if self.may_print else None,
                self.readings,
            )
        for block in blocks:
            for variable, factor in zip(
                self.inverted.get(block, ()), block.factors
            ):
                variable.assign(factor.value())
        if self.readings is not None:
            self.readings.note_inversion(blocks)

    def watch(self) -> None:
        """Has steps that are traced from here on note what they do."""
        if self.readings is None:
            owned = [b for b in self.blocks if self.distributor.owns(b)]
            self.readings = Readings(owned)

    def precondition(
        self,
        gradients: Mapping[int, tf.Tensor],
        dampings: Mapping[str, tf.Tensor],
    ) -> dict[int, tf.Tensor]:
        """Returns U for V, both by the id of the variable, for what is held.

        A variable that no block claims keeps its gradient; so does a block
        that lacks the gradient of one of its variables.
        """
        result = dict(gradients)
        for block in self._inverses:
            keys = [id(v) for v in block.variables]
            if all(key in gradients for key in keys):
                dtype = state_dtype(block.variables[0])
                V = [gradients[key] for key in keys]
                damping = tf.cast(dampings[block.damping], dtype)
                U = block.precondition(V, damping)
                result.update(zip(keys, U))
        return result


def state_dtype(variable) -> tf.DType:
    """Returns the type of the state for a variable: float32 or wider."""
    dtype = tf.as_dtype(variable.dtype)
    return dtype if dtype.size > 4 else tf.float32
