"""From U to the weights: clips, momentum, decay, constraints, averages.

nu = min(1, sqrt(kl_clip / (eta^2 sum <U, V>)))
m <- mu m - eta nu U,    W <- (1 - eta wd) W + m

With kl_clip="auto" the bound adapts before, by <V, m> (`trust_region`).

What the fallback claims takes its step in the place of m, and no part in the
sum: its rate is its own, the decay eta wd that of all weights.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfkfac import keras_compat, linalg
from tfkfac.fallback import Fallback
from tfkfac.trust_region import TrustRegion


class WeightUpdate:
    """What one update does to the weights; it knows no curvature.

    Args:
        optimizer: The `KFAC`, for its settings and its momenta.
        variables: The variables that are updated.
        update: t.
        fallback: What becomes of variables without a block.
    """

    def __init__(
        self,
        optimizer,
        variables: Sequence,
        update: tf.Tensor,
        fallback: Fallback,
    ):
        self._optimizer, self._variables = optimizer, variables
        self._update, self._fallback = update, fallback
        self._claimed = {id(v) for v in variables if fallback.claims(v)}
        kl_clip = optimizer.hyperparameters.get("kl_clip")
        adapts = isinstance(kl_clip, TrustRegion) and not kl_clip.is_given
        self._region = kl_clip if adapts else None

    def clip(self, V: Mapping[int, tf.Tensor]) -> Mapping[int, tf.Tensor]:
        """Returns V after Keras' clipping of each gradient."""
        if self._optimizer.global_clipnorm is not None:
            return V  # The norm of all is known later; see `run`.
        clipped = keras_compat.clip(self._optimizer, list(V.values()))
        return dict(zip(V, clipped))

    def sums(
        self, U: Mapping[int, tf.Tensor], V: Mapping[int, tf.Tensor]
    ) -> tf.Tensor:
        """Returns sum <U, V>, |V|^2 and sum <V, m> over variables, [3].

        The first and the last are without what the fallback claims; the last
        is of the momentum before the update, and is not finite where that is
        not. They are for `run`.
        """
        # |V|^2 is for the clip alone.
        clipped = {} if self._optimizer.global_clipnorm is None else V
        preconditioned = {k: u for k, u in U.items() if k not in self._claimed}
        slope = _dot(self._last_movement(V), V)
        others = [
            self._momentum_of(v).value
            for v in self._variables
            if id(v) not in V
        ]
        if others:  # Of which other ranks have V.
            sound = linalg.all_finite(others)
            slope = tf.where(sound, slope, tf.cast(np.nan, slope.dtype))
        return tf.stack(
            [_dot(preconditioned, V), _dot(clipped, clipped), slope]
        )

    def _last_movement(self, V):
        """Returns m of the update before, for the variables of V."""
        return {
            id(v): self._momentum_of(v).value
            for v in self._variables
            if id(v) in V and id(v) not in self._claimed
        }

    def _momentum_of(self, variable):
        optimizer = self._optimizer
        return optimizer.momenta[keras_compat.index_of(optimizer, variable)]

    def run(self, U: Mapping[int, tf.Tensor], sums: tf.Tensor) -> tf.Tensor:
        """Moves the weights; returns nu, a float64 scalar.

        Args:
            U: Of all variables, by their ids; V of those that the fallback
                claims.
            sums: As `sums` gives, over all variables.
        """
        optimizer = self._optimizer
        dot, square, slope = tf.unstack(sums)
        scale = self._global_clip(square)
        dot, slope = scale * scale * dot, scale * slope
        mu = optimizer.at_update("momentum", tf.float64)
        if self._region is not None:
            self._region.adapt(slope, mu)
        eta = tf.cast(optimizer.learning_rate, tf.float64)
        nu = self._kl_scale(dot, eta)
        step = eta * scale * nu
        if self._region is not None:
            self._region.note(mu * slope - eta * nu * dot, nu < 1)
        for dtype in {u.dtype: None for u in U.values()}:
            eta_nu, mu_, eta_ = (tf.cast(x, dtype) for x in (step, mu, eta))
            for v in self._variables:
                u = U[id(v)]
                if u.dtype != dtype:
                    continue
                if id(v) in self._claimed:
                    u *= tf.cast(scale, dtype)
                    self._move(v, self._fallback.step(v, u, eta_), eta_)
                else:
                    self._accelerate(v, u, eta_nu, mu_, eta_)
        if optimizer.use_ema:
            self._average_weights()
        return nu

    def mend_momenta(self) -> None:
        """Has momenta begin anew at 0 where they are not finite."""
        for v in self._variables:
            m = self._momentum_of(v)
            m.assign(tf.where(tf.math.is_finite(m.value), m.value, 0.0))

    def _global_clip(self, square):
        """Returns what `global_clipnorm` multiplies V, and so U, by."""
        bound = self._optimizer.global_clipnorm
        if bound is None:
            return tf.ones([], tf.float64)
        bound = tf.constant(bound, tf.float64)
        return bound / tf.maximum(tf.sqrt(square), bound)

    def _kl_scale(self, dot, eta):
        """Returns nu; 1 where sum <U, V> is not positive."""
        if "kl_clip" not in self._optimizer.hyperparameters:
            return tf.ones([], tf.float64)
        bound = self._optimizer.at_update("kl_clip", tf.float64)
        square = tf.square(eta) * dot
        usable = square > 0
        nu = tf.sqrt(bound / tf.where(usable, square, 1))
        return tf.where(usable, tf.minimum(nu, 1), 1)

    def _accelerate(self, variable, u, eta_nu, mu, eta):
        """Makes m <- mu m - eta nu U and W <- (1 - eta wd) W + m."""
        optimizer, momentum = self._optimizer, self._momentum_of(variable)
        if variable.dtype != momentum.dtype:
            m = mu * momentum - eta_nu * u
            momentum.assign(m)
            self._move(variable, m, eta)
            return
        if keras_compat.decays(optimizer, variable):
            variable.assign(self._decayed(variable.value, eta))
        # One operation in place of eight.
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=keras_compat.tensorflow_variable(variable).handle,
            accum=keras_compat.tensorflow_variable(momentum).handle,
            lr=eta_nu,
            grad=u,
            momentum=mu,
            use_locking=True,
        )
        self._constrain(variable)

    def _move(self, variable, step, eta):
        """Makes W <- (1 - eta wd) W + step."""
        w = tf.cast(variable.value, step.dtype)
        if keras_compat.decays(self._optimizer, variable):
            w = self._decayed(w, eta)
        variable.assign(tf.cast(w + step, variable.dtype))
        self._constrain(variable)

    def _decayed(self, w, eta):
        """Returns (1 - eta wd) W."""
        decay = tf.constant(self._optimizer.weight_decay, eta.dtype)
        return w * (1 - eta * decay)

    def _constrain(self, variable):
        if variable.constraint is not None:
            variable.assign(variable.constraint(variable.value))

    def _average_weights(self):
        """The moving average of the weights, and its writing back."""
        optimizer = self._optimizer
        decay = tf.constant(optimizer.ema_momentum, tf.float64)
        decay = tf.where(self._update > 0, decay, 0)
        pairs = keras_compat.moving_averages(optimizer)
        for v, average in pairs:
            d = tf.cast(decay, average.dtype)
            # One that was damaged begins anew.
            last = tf.where(tf.math.is_finite(average.value), average, v)
            average.assign(d * last + (1 - d) * v)
        frequency = optimizer.ema_overwrite_frequency
        if not frequency:
            return

        def overwrite():
            for v, average in pairs:
                v.assign(average)
            return tf.constant(True)

        due = tf.equal((self._update + 1) % frequency, 0)
        tf.cond(due, overwrite, lambda: tf.constant(False))


def _dot(a, b):
    """Returns the sum of the products, in float64."""
    total = tf.zeros([], tf.float64)
    for dtype in {v.dtype: None for v in a.values()}:
        keys = [key for key, value in a.items() if value.dtype == dtype]
        terms = tf.stack([tf.reduce_sum(a[k] * b[k]) for k in keys])
        total += tf.reduce_sum(tf.cast(terms, tf.float64))
    return total
