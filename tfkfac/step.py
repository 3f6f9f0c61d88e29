"""One call of `KFAC.apply`, from gradients to weights, in order."""

import sys
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from tfkfac import assertions, linalg
from tfkfac.distributed import packing
from tfkfac.estimator import state_dtype
from tfkfac.tracing import apart, on_host
from tfkfac.weight_update import WeightUpdate

UpdateFactors = Callable[[tf.Tensor], None]  # With rho.


class Step:
    """A step of data: what was recorded of it, V, and what becomes of them.

    Args:
        optimizer: The `KFAC`.
        grads: The gradients V, one for each variable.
        variables: The variables.
    """

    def __init__(self, optimizer, grads: Sequence, variables: Sequence):
        self.optimizer, self.variables = optimizer, variables
        self.attached = optimizer.require_attached()
        self.recorded = self.attached.take_step(grads, variables)
        self.layers = self.attached.layers
        self.estimator = self.layers.estimator
        self.distributor = self.layers.distributor
        self.grads = [
            tf.cast(tf.convert_to_tensor(g), state_dtype(v))
            for g, v in zip(grads, variables)
        ]
        self.t = optimizer.updates

    def run(self) -> tf.Tensor:
        """Makes the update; where V is not finite, counts a skipped step.

        Returns whether it was made.
        """
        V, finite, (before, examples) = self._joint_gradients()

        def update_factors(decay):
            moments, count = self.moments(before)
            self.estimator.update_factors(moments, count, decay)

        return tf.cond(
            finite,
            lambda: self.update(V, update_factors, examples),
            lambda: self.skip(self.attached.recorder.undo_forward_pass),
        )

    def update(
        self,
        V: Mapping[int, tf.Tensor],
        update_factors: UpdateFactors,
        examples: tf.Tensor,
    ) -> tf.Tensor:
        """Makes the update for V, which this rank has its part of; True.

        Args:
            V: By the id of the variable, over all ranks and micro-steps.
            update_factors: Takes the statistics into the factors.
            examples: The number of those that V is of, on all ranks.
        """
        weights = WeightUpdate(
            self.optimizer, self.variables, self.t, self.layers.fallback
        )
        V = weights.clip(V)
        self._update_factors_if_due(update_factors)
        dampings = self.optimizer.dampings(tf.float64)
        self.layers.inverse_schedule.run(
            self.t,
            dampings,
            lambda: self.recorded.costs().inversions(
                self.estimator.blocks, tf.cast(examples, tf.float64)
            ),
        )
        U = self.estimator.precondition(V, dampings)
        readings = self.estimator.readings
        products = None if readings is None else readings.products(U, V)
        shapes = {id(v): g for v, g in zip(self.variables, self.grads)}
        U, sums = self.distributor.gather_updates(U, weights.sums(U, V), shapes)
        tf.cond(
            tf.math.is_finite(sums[2]),
            false,
            apart(lambda: self._mend(weights)),
        )
        nu = weights.run(U, sums)
        if readings is not None:
            readings.note_update(products, sums[0], nu)
        self.optimizer.skips_in_a_row.assign(0)
        return tf.constant(True)

    # Gradients.

    def numbers_are_sound(self) -> tf.Tensor:
        """Returns whether an update can be made with the optimizer's numbers.

        Those that it cannot be made with are named on stderr.
        """
        names, unsound = self.optimizer.unsound_numbers()
        found = tf.reduce_any(unsound)

        def skipped(t, unsound):
            named = ", ".join(n for n, bad in zip(names, unsound) if bad)
            return (
                f"update {t} is skipped, for a number that is out of its range:"
                f" {named}"
            )

        tf.cond(found, lambda: self._say(skipped, unsound), false)
        return tf.logical_not(found)

    def _mend(self, weights):
        weights.mend_momenta()
        return self._say(
            lambda t: f"a momentum was not finite at update {t}; it begins anew"
        )

    def _say(self, text, *values):
        """Prints `text(t, *values)` on stderr; False."""

        def say(t, *values):
            print("tfkfac:", text(int(t), *values), file=sys.stderr)
            return []

        if self.estimator.may_print:
            on_host(say, [self.t, *values])
        return tf.constant(False)

    def _joint_gradients(self):
        """Returns (V of the joint batch, whether it is finite and an update can
        be made, the numbers of examples of the ranks before and of all)."""
        sound = self.numbers_are_sound()
        if self.distributor.size == 1:
            V = {id(v): g for v, g in zip(self.variables, self.grads)}
            finite = tf.logical_and(
                linalg.all_finite(self.grads, squares=True), sound
            )
            return V, finite, (0, self.recorded.examples())
        D = self.divisor()
        self.scale_sums()
        sums = [g * tf.cast(D, g.dtype) for g in self.grads]
        # All ranks skip what their sum could not hold.
        ranks = self.distributor.size
        fits = linalg.all_finite([ranks * s for s in sums], squares=True)
        return self.reduce(sums, D, tf.logical_and(sound, fits))

    def divisor(self) -> tf.Tensor:
        """Returns D, such that the joint V is sum D V / sum D."""
        return self.recorded.divisor(
            packing.widest(g.dtype for g in self.grads)
        )

    def scale_sums(self) -> None:
        """Makes V such that its mean over the ranks is that of a summed loss.

        The gradient of a variable's regularizer R is in V on every rank, and
        is to count once: n V - (n - 1) R.
        """
        ranks = self.distributor.size
        if ranks == 1 or self.recorded.loss_is_mean():
            return
        self.grads = [ranks * g for g in self.grads]
        for i, v in enumerate(self.variables):
            if getattr(v, "regularizer", None) is not None:
                w = v.value
                with tf.GradientTape() as tape:
                    tape.watch(w)
                    penalty = v.regularizer(w)
                g = tf.cast(tape.gradient(penalty, w), self.grads[i].dtype)
                self.grads[i] -= (ranks - 1) * g

    def reduce(
        self, sums: Sequence[tf.Tensor], divisor: tf.Tensor, finite: tf.Tensor
    ) -> tuple[dict[int, tf.Tensor], tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
        """Returns (V over all ranks, whether it is finite, the numbers of
        examples of the ranks before and of all).

        Args:
            sums: D V of this rank, one for each variable.
            divisor: D of this rank.
            finite: Whether they are finite on this rank.
        """
        by_id = {id(v): g for v, g in zip(self.variables, sums)}
        return self.distributor.reduce_gradients(
            by_id,
            divisor,
            finite,
            self.recorded.examples(),
            self.optimizer.numbers(),
        )

    # Statistics.

    def moments(self, examples_before: tf.Tensor | int):
        """Returns (moments by block, N) of this rank.

        Args:
            examples_before: Those of the joint batch of the update that come
                before the ones of this rank and micro-step.
        """
        return self.recorded.moments(
            self.t,
            examples_before,
            self.estimator.moments_of,
            packing.widest(g.dtype for g in self.grads),
        )

    def factors_are_due(self) -> tf.Tensor:
        """Returns whether this update takes statistics, a boolean scalar."""
        forced = self.estimator.refresh_needed.value()
        period = self.optimizer.periods["factor_update_period"]
        due = period.due(self.t, lambda: self.recorded.costs().factors)
        return tf.logical_or(due, forced)

    def _update_factors_if_due(self, update_factors):
        def factors():
            update_factors(self.optimizer.at_update("factor_decay", tf.float64))
            self.optimizer.periods["factor_update_period"].done(self.t)
            if self.estimator.readings is not None:
                self.estimator.readings.count("factors")
            return tf.constant(True)

        tf.cond(self.factors_are_due(), apart(factors), false)

    # A step that is not finite.

    def skip(self, undo: Callable[[], None]) -> tf.Tensor:
        """Leaves the weights as they are and counts; False.

        Args:
            undo: Takes back what else the step has done.
        """
        undo()
        optimizer = self.optimizer
        if self.estimator.readings is not None:
            self.estimator.readings.count("skipped")
        optimizer.skip_counter.assign_add(1)
        optimizer.skips_in_a_row.assign_add(1)
        return tf.constant(False)


def require_few_skips(optimizer) -> None:
    """Raises InvalidArgumentError after more than `max_skipped_steps`.

    The call has been counted by then, so that training can go on.
    """
    limit = optimizer.max_skipped_steps
    few = optimizer.skips_in_a_row.value <= limit
    counted = [optimizer.updates, optimizer.curvature.updates.value]
    with tf.control_dependencies([tf.identity(x) for x in counted]):
        assertions.require(few, too_many_skipped(limit))


def too_many_skipped(limit: int) -> str:
    """Returns what is said when more than `limit` updates were skipped."""
    return (
        f"KFAC skipped more than max_skipped_steps={limit} updates in a row: "
        "their gradients held NaN or infinity, or a schedule or the learning "
        "rate did. Look for such values in the data and the schedules, or "
        "lower the learning rate or raise the damping."
    )


def false():
    return tf.constant(False)
