"""Accumulation over micro-steps (`gradient_accumulation_steps`).

V is the sum of D V over the micro-steps over that of D: the gradient of the
joint batch. One micro-step that is not finite costs the whole update.

Each rank sums n D V and n D, with n the number of ranks, so that the joint sums
are the means over the ranks, as of other optimizers (`sync.join_sums`).
"""

import tensorflow as tf

from tfkfac import keras_compat, linalg
from tfkfac.step import Step, false


class MicroStep(Step):
    """A micro-step towards an update, which the last one of a window makes."""

    def run(self) -> tf.Tensor:
        """Adds to V and to the statistics; updates at the last micro-step.

        Returns whether an update was made.
        """
        optimizer = self.optimizer
        first = tf.equal(optimizer.micro_step, 0)
        sound = self._note_finiteness(first)
        tf.cond(sound, lambda: self._add_gradients(first), self._undo)
        added = tf.cond(
            self.factors_are_due(),
            lambda: self._add_statistics(first),
            false,
        )
        n = optimizer.gradient_accumulation_steps
        last = tf.equal(optimizer.micro_step, n - 1)
        # Collectives of both have one name, and come one after the other.
        with tf.control_dependencies([added]):
            return tf.cond(last, lambda: self._finish(sound), false)

    def _note_finiteness(self, first):
        """Returns whether all gradients of the window so far were finite."""
        known = self.optimizer.window_is_finite
        sound = tf.logical_or(first, known.value)
        sound = tf.logical_and(
            sound, linalg.all_finite(self.grads, squares=True)
        )
        known.assign(sound)
        return sound

    def _undo(self):
        self.attached.recorder.undo_forward_pass()
        return false()

    def _add_gradients(self, first):
        """Adds n D V and n D to their sums over the micro-steps."""
        self.scale_sums()
        total = self.optimizer.window_divisor
        # Without loss terms, V of the regularizers alone counts by a trace.
        D = tf.cast(tf.maximum(self.divisor(), 1e-12), total.dtype)
        D = self.distributor.size * D
        more = tf.logical_not(first)
        total.assign(tf.where(more, total.value, 0) + D)
        for variable, g in zip(self._gradient_sums(), self.grads):
            g = tf.cast(g * tf.cast(D, g.dtype), variable.dtype)
            variable.assign(tf.where(more, variable.value, 0) + g)
        return tf.constant(True)

    def _gradient_sums(self):
        sums = keras_compat.accumulated_gradients(self.optimizer)
        return [
            sums[keras_compat.index_of(self.optimizer, v)]
            for v in self.variables
        ]

    def _add_statistics(self, first):
        """Also of what is not sound: other ranks wait for their share."""
        seen = self.optimizer.window_examples
        earlier = tf.where(first, tf.zeros_like(seen.value), seen.value)
        before, number = self.distributor.count_examples(
            self.recorded.examples()
        )
        seen.assign(earlier + number)
        moments, count = self.moments(earlier + before)
        self.estimator.accumulate(moments, count, tf.logical_not(first))
        return tf.constant(True)

    def _finish(self, sound):
        """Makes the update of the window."""
        sums = [
            tf.cast(total, g.dtype)
            for total, g in zip(self._gradient_sums(), self.grads)
        ]
        D = self.optimizer.window_divisor.value
        n = self.optimizer.gradient_accumulation_steps
        ranks = self.distributor.size
        fits = linalg.all_finite([ranks * s for s in sums], squares=True)
        sound = tf.logical_and(sound, fits)
        sound = tf.logical_and(sound, self.numbers_are_sound())
        V, sound, (_, examples) = self.reduce(sums, D, sound)
        return tf.cond(
            sound,
            lambda: self.update(V, self.estimator.finish, n * examples),
            lambda: self.skip(self._discard_statistics),
        )

    def _discard_statistics(self):
        def discard():
            self.estimator.discard()
            return tf.constant(True)

        tf.cond(self.factors_are_due(), discard, false)
