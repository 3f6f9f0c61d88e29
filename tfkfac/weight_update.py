"""One call of the optimizer: from gradients to weights."""

from collections.abc import Sequence

import tensorflow as tf

from tfkfac import linalg
from tfkfac.distributed import packing
from tfkfac.estimator import state_dtype


def _true():
    return tf.constant(True)


def _false():
    return tf.constant(False)


def _dot(a, b):
    """Returns the sum of the products, in float64."""
    total = tf.zeros([], tf.float64)
    for dtype in {v.dtype: None for v in a.values()}:
        keys = [key for key, value in a.items() if value.dtype == dtype]
        terms = tf.stack([tf.reduce_sum(a[k] * b[k]) for k in keys])
        total += tf.reduce_sum(tf.cast(terms, tf.float64))
    return total


class Update:
    """One call of `KFAC.apply`: a weight update, or a micro-step towards one.

    Args:
        optimizer: The `KFAC`.
        grads: The gradients V, one for each variable.
        variables: The variables.
    """

    def __init__(self, optimizer, grads: Sequence, variables: Sequence):
        attached = optimizer.require_attached()
        self.optimizer = optimizer
        self.undo_forward_pass = attached.recorder.undo_forward_pass
        self.step = attached.take_step(grads, variables)
        self.estimator = attached.estimator
        self.inverse_schedule = attached.inverse_schedule
        self.distributor = self.estimator.distributor
        self.variables = variables
        self.grads = [
            tf.cast(tf.convert_to_tensor(g), state_dtype(v))
            for g, v in zip(grads, variables)
        ]
        self.t = optimizer.updates

    def run(self) -> None:
        """Makes the update; where V is not finite, counts a skipped step."""
        finite = linalg.all_finite(self.grads)
        if self.optimizer.gradient_accumulation_steps:
            self._run_micro_step(finite)
            return
        examples_before = 0
        if self.distributor.size == 1:
            V = {id(v): g for v, g in zip(self.variables, self.grads)}
        else:
            D = self._divisor()
            self._scale_sums()
            sums = [g * tf.cast(D, g.dtype) for g in self.grads]
            # All ranks skip what their sum could not hold.
            finite = linalg.all_finite(
                [self.distributor.size * s for s in sums]
            )
            V, finite, examples_before = self._reduce(sums, D, finite)

        def update_factors(decay):
            moments, count = self._statistics(examples_before)
            self.estimator.update_factors(moments, count, decay)

        tf.cond(
            finite,
            lambda: self._update(V, update_factors),
            lambda: self._skip(self.undo_forward_pass),
        )

    def _divisor(self):
        return self.step.divisor(packing.widest(g.dtype for g in self.grads))

    def _scale_sums(self):
        """Makes V such that its mean over the ranks is that of a summed loss.

        The gradient of a variable's regularizer R is in V on every rank, and
        is to count once: n V - (n - 1) R.
        """
        ranks = self.distributor.size
        if ranks == 1 or self.step.loss_is_mean():
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

    def _reduce(self, sums, divisor, finite):
        """Returns (V over all ranks, whether finite, examples before)."""
        sums = {id(v): g for v, g in zip(self.variables, sums)}
        return self.distributor.reduce_gradients(
            sums, divisor, finite, self.step.examples()
        )

    # Accumulation over micro-steps.

    def _run_micro_step(self, finite):
        """Adds to V and to the statistics; updates at the last micro-step.

        V is the sum of D V over the micro-steps over that of D: the gradient of
        the joint batch. One micro-step that is not finite costs the whole
        update.
        """
        optimizer = self.optimizer
        micro = optimizer.micro_step
        first = tf.equal(micro, 0)
        seen = optimizer.window_examples.value
        examples = tf.where(first, tf.zeros_like(seen), seen)
        sound = tf.logical_or(first, optimizer.window_is_finite.value)
        sound = tf.logical_and(sound, finite)
        optimizer.window_is_finite.assign(sound)

        def accumulate():
            self._add_gradients(first)
            return _true()

        def take_statistics():
            # Also of what is not sound: other ranks wait for their share.
            before, number = self.distributor.count_examples(
                self.step.examples()
            )
            optimizer.window_examples.assign(examples + number)
            moments, count = self._statistics(examples + before)
            self.estimator.accumulate(moments, count, tf.logical_not(first))
            return _true()

        def undo():
            self.undo_forward_pass()
            return _false()

        tf.cond(sound, accumulate, undo)
        tf.cond(self._factors_due(), take_statistics, _false)

        def finish():
            sums = [
                tf.cast(total, g.dtype)
                for total, g in zip(self._gradient_sums(), self.grads)
            ]
            D = optimizer.window_divisor.value
            fits = linalg.all_finite([self.distributor.size * s for s in sums])
            V, all_sound, _ = self._reduce(sums, D, tf.logical_and(sound, fits))
            return tf.cond(
                all_sound,
                lambda: self._update(V, self.estimator.finish),
                lambda: self._skip(discard),
            )

        def discard():
            tf.cond(self._factors_due(), self._discard_factors, _false)

        last = tf.equal(micro, optimizer.gradient_accumulation_steps - 1)
        tf.cond(last, finish, _false)

    def _gradient_sums(self):
        optimizer = self.optimizer
        return [
            optimizer._accumulated_gradients[optimizer._get_variable_index(v)]
            for v in self.variables
        ]

    def _add_gradients(self, first):
        """Adds D V and D to their sums over the micro-steps."""
        self._scale_sums()
        total = self.optimizer.window_divisor
        # Without loss terms, V of the regularizers alone counts by a trace.
        D = tf.cast(tf.maximum(self._divisor(), 1e-12), total.dtype)
        more = tf.logical_not(first)
        total.assign(tf.where(more, total.value, 0) + D)
        for variable, g in zip(self._gradient_sums(), self.grads):
            g = tf.cast(g * tf.cast(D, g.dtype), variable.dtype)
            variable.assign(tf.where(more, variable.value, 0) + g)

    def _discard_factors(self):
        self.estimator.discard()
        return _true()

    # The update.

    def _update(self, V, update_factors):
        optimizer = self.optimizer
        V = self._clip(V)
        self._update_curvature(update_factors)
        U = self.estimator.precondition(V, self._dampings())
        # |V|^2 is for the clip alone.
        clipped = {} if optimizer.global_clipnorm is None else V
        sums = tf.stack([_dot(U, V), _dot(clipped, clipped)])
        shapes = {id(v): g for v, g in zip(self.variables, self.grads)}
        U, sums = self.distributor.gather_updates(U, sums, shapes)
        dot, square = tf.unstack(sums)
        scale = self._global_clip(square)
        eta = tf.cast(optimizer.learning_rate, tf.float64)
        step = eta * scale * self._kl_scale(scale * scale * dot, eta)
        mu = optimizer.at_update("momentum", tf.float64)
        for dtype in {u.dtype: None for u in U.values()}:
            numbers = [tf.cast(x, dtype) for x in (step, mu, eta)]
            for v in self.variables:
                if U[id(v)].dtype == dtype:
                    self._move(v, U[id(v)], *numbers)
        if optimizer.use_ema:
            self._average_weights()
        optimizer.skips_in_a_row.assign(0)
        return _true()

    def _clip(self, V):
        """Keras' clipping of each gradient."""
        if self.optimizer.global_clipnorm is not None:
            return V
        return dict(zip(V, self.optimizer._clip_gradients(list(V.values()))))

    def _global_clip(self, square):
        """Returns what `global_clipnorm` multiplies V, and so U, by."""
        bound = self.optimizer.global_clipnorm
        if bound is None:
            return tf.ones([], tf.float64)
        bound = tf.constant(bound, tf.float64)
        return bound / tf.maximum(tf.sqrt(square), bound)

    def _dampings(self):
        """Returns the damping of each kind of block by its name."""
        at_update = self.optimizer.at_update
        damping = norm_damping = at_update("damping", tf.float64)
        if "norm_damping" in self.optimizer.hyperparameters:
            norm_damping = at_update("norm_damping", tf.float64)
        return {"damping": damping, "norm_damping": norm_damping}

    def _factors_due(self):
        forced = self.estimator.refresh_needed.value()
        due = self.optimizer.periods["factor_update_period"].due(self.t)
        return tf.logical_or(due, forced)

    def _statistics(self, examples_before):
        """Returns (moments by block, N) of this rank."""
        return self.step.moments(
            self.t,
            examples_before,
            self.estimator.moments_of,
            packing.widest(g.dtype for g in self.grads),
        )

    def _update_curvature(self, update_factors):
        """Does what is due of factor updates and inversions."""
        periods = self.optimizer.periods

        def factors():
            update_factors(self.optimizer.at_update("factor_decay", tf.float64))
            periods["factor_update_period"].done(self.t)
            return _true()

        tf.cond(self._factors_due(), factors, _false)
        self.inverse_schedule.run(self.t, self._dampings())

    def _kl_scale(self, dot, eta):
        """Returns nu = min(1, sqrt(kl_clip / (eta^2 sum <U, V>)))."""
        if "kl_clip" not in self.optimizer.hyperparameters:
            return tf.ones([], tf.float64)
        bound = self.optimizer.at_update("kl_clip", tf.float64)
        square = tf.square(eta) * dot
        usable = square > 0
        nu = tf.sqrt(bound / tf.where(usable, square, 1))
        return tf.where(usable, tf.minimum(nu, 1), 1)

    def _move(self, variable, u, eta_nu, mu, eta):
        """m <- mu m - eta nu U, W <- (1 - eta wd) W + m; the constraint."""
        optimizer = self.optimizer
        momentum = optimizer.momenta[optimizer._get_variable_index(variable)]
        m = mu * momentum - eta_nu * u
        momentum.assign(m)
        w = tf.cast(variable.value, u.dtype)
        decay = optimizer.weight_decay
        if decay is not None and optimizer._use_weight_decay(variable):
            w = w * (1 - eta * tf.constant(decay, u.dtype))
        variable.assign(tf.cast(w + m, variable.dtype))
        if variable.constraint is not None:
            variable.assign(variable.constraint(variable.value))

    def _average_weights(self):
        """The moving average of the weights, and its writing back."""
        optimizer = self.optimizer
        decay = tf.constant(optimizer.ema_momentum, tf.float64)
        decay = tf.where(self.t > 0, decay, 0)
        pairs = [
            (v, average)
            for v, average in zip(
                optimizer._trainable_variables,
                optimizer._model_variables_moving_average,
            )
            if average is not None
        ]
        for v, average in pairs:
            d = tf.cast(decay, average.dtype)
            average.assign(d * average + (1 - d) * v)
        frequency = optimizer.ema_overwrite_frequency
        if not frequency:
            return

        def overwrite():
            for v, average in pairs:
                v.assign(average)
            return _true()

        tf.cond(tf.equal((self.t + 1) % frequency, 0), overwrite, _false)

    def _skip(self, undo):
        """Leaves the weights as they are and counts."""
        undo()
        optimizer = self.optimizer
        optimizer.skip_counter.assign_add(1)
        optimizer.skips_in_a_row.assign_add(1)
        tf.debugging.assert_less_equal(
            optimizer.skips_in_a_row.value,
            tf.constant(optimizer.max_skipped_steps, tf.int64),
            message=(
                "KFAC skipped more than "
                f"max_skipped_steps={optimizer.max_skipped_steps} updates in a "
                "row: their gradients held NaN or infinity. Look for such "
                "values in the data, or lower the learning rate or raise the "
                "damping."
            ),
        )
        return _false()
