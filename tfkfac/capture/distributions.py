"""Distributions over targets, given the outputs of a model.

A loss term l = c NLL + constant, with NLL the negative log-likelihood of a
`Likelihood` and c its `loss_scale`. Outputs come as [terms, K]: a row for each
entry of the unreduced loss. A target is a function of uniform numbers: the
inverse of the distribution function.
"""

import abc
import math

import keras
import tensorflow as tf

_EPSILON = 1e-7  # What Keras clips probabilities to.


class Likelihood(abc.ABC):
    """A distribution over targets, given the outputs of a model."""

    @abc.abstractmethod
    def draws(self, outputs: tf.Tensor) -> int | tf.Tensor:
        """Returns how many uniform numbers a target takes."""

    @abc.abstractmethod
    def sample(self, outputs: tf.Tensor, uniforms: tf.Tensor) -> tf.Tensor:
        """Returns a target for each row of `outputs`.

        Args:
            outputs: [terms, K].
            uniforms: [terms, draws], in the open interval (0, 1), float32.
        """

    @abc.abstractmethod
    def negative_log_likelihood(
        self, outputs: tf.Tensor, targets: tf.Tensor
    ) -> tf.Tensor:
        """Returns -log p(targets | outputs) + constant, [terms]."""

    @abc.abstractmethod
    def loss_scale(self, outputs: tf.Tensor) -> tf.Tensor | float:
        """Returns c, such that a loss term is c NLL."""

    def curvature_along(
        self, outputs: tf.Tensor, tangents: tf.Tensor
    ) -> tf.Tensor:
        """Returns u^T H u, [terms]; H is the Fisher in the outputs.

        What `tfkfac.analysis.measure` takes; training does without.

        Args:
            outputs: [terms, K].
            tangents: u, [terms, K].
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no curvature_along(outputs, tangents): "
            "define it to measure curvature."
        )

    def get_config(self) -> dict:
        return {}

    @classmethod
    def from_config(cls, config: dict):
        return cls(**config)


def _clip(probabilities: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(probabilities, _EPSILON, 1 - _EPSILON)


def _push_forward(function, outputs, tangents):
    """Returns f(outputs) and its derivative along the tangents."""
    with tf.autodiff.ForwardAccumulator(outputs, tangents) as accumulator:
        value = function(outputs)
    return value, accumulator.jvp(value)


@keras.saving.register_keras_serializable(package="tfkfac")
class Categorical(Likelihood):
    """One of K classes: softmax cross-entropy, c = 1.

    Args:
        from_logits: Whether the outputs are logits or probabilities.
    """

    def __init__(self, from_logits: bool = True):
        self.from_logits = from_logits

    def get_config(self) -> dict:
        return {"from_logits": self.from_logits}

    def _logits(self, outputs: tf.Tensor) -> tf.Tensor:
        return outputs if self.from_logits else tf.math.log(_clip(outputs))

    def draws(self, outputs):
        return 1

    def sample(self, outputs, uniforms):
        cumulative = tf.cumsum(tf.nn.softmax(self._logits(outputs)), axis=-1)
        thresholds = tf.cast(uniforms, outputs.dtype) * cumulative[:, -1:]
        below = tf.cast(cumulative <= thresholds, tf.int32)
        return tf.minimum(
            tf.reduce_sum(below, axis=-1), tf.shape(outputs)[-1] - 1
        )

    def negative_log_likelihood(self, outputs, targets):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=targets, logits=self._logits(outputs)
        )

    def curvature_along(self, outputs, tangents):
        """Returns the variance of u over the classes, u that of the logits."""
        logits, u = _push_forward(self._logits, outputs, tangents)
        p = tf.nn.softmax(logits)
        u -= tf.reduce_sum(p * u, axis=-1, keepdims=True)
        return tf.reduce_sum(p * tf.square(u), axis=-1)

    def loss_scale(self, outputs):
        return 1.0


class _PerOutput(Likelihood):
    """K independent outputs, with a uniform number for each.

    Args:
        scale: c; None is that of Keras' mean over the K outputs.
    """

    _c_times_k = 1.0  # In Keras' mean over the outputs.

    def __init__(self, scale: float | None = None):
        self.scale = scale

    def get_config(self) -> dict:
        return {"scale": self.scale}

    def draws(self, outputs):
        return tf.shape(outputs)[-1]

    def loss_scale(self, outputs):
        if self.scale is not None:
            return self.scale
        return self._c_times_k / tf.cast(tf.shape(outputs)[-1], outputs.dtype)


@keras.saving.register_keras_serializable(package="tfkfac")
class Bernoulli(_PerOutput):
    """K independent yes-or-no outputs: binary cross-entropy, c = 1 / K.

    Args:
        from_logits: Whether the outputs are logits or probabilities.
        scale: c; None is that of Keras' mean over the K outputs, 1 / K.
    """

    def __init__(self, from_logits: bool = True, scale: float | None = None):
        super().__init__(scale)
        self.from_logits = from_logits

    def get_config(self) -> dict:
        return {"from_logits": self.from_logits, **super().get_config()}

    def _logits(self, outputs: tf.Tensor) -> tf.Tensor:
        if self.from_logits:
            return outputs
        p = _clip(outputs)
        return tf.math.log(p) - tf.math.log(1 - p)

    def sample(self, outputs, uniforms):
        p = tf.sigmoid(self._logits(outputs))
        return tf.cast(tf.cast(uniforms, p.dtype) < p, p.dtype)

    def negative_log_likelihood(self, outputs, targets):
        losses = tf.nn.sigmoid_cross_entropy_with_logits(
            labels=targets, logits=self._logits(outputs)
        )
        return tf.reduce_sum(losses, axis=-1)

    def curvature_along(self, outputs, tangents):
        logits, u = _push_forward(self._logits, outputs, tangents)
        variance = tf.sigmoid(logits) * tf.sigmoid(-logits)
        return tf.reduce_sum(variance * tf.square(u), axis=-1)


class _Residual(_PerOutput):
    """Targets y = s + r: the density of r is proportional to exp(-rho(r)).

    It is symmetric, so that a number x, uniform in (-1, 1), gives r = sign(x) t
    with P(|r| <= t) = |x|. The Fisher in s is E[rho'(r)^2] I.
    """

    _information: float  # E[rho'(r)^2].

    @abc.abstractmethod
    def _size(self, chance: tf.Tensor) -> tf.Tensor:
        """Returns t with P(|r| <= t) = `chance`, which is in (0, 1)."""

    @abc.abstractmethod
    def _rho(self, r: tf.Tensor) -> tf.Tensor:
        """Returns rho(r), entry by entry."""

    def sample(self, outputs, uniforms):
        x = 2 * uniforms - 1
        r = tf.sign(x) * self._size(tf.abs(x))
        return outputs + tf.cast(r, outputs.dtype)

    def negative_log_likelihood(self, outputs, targets):
        return tf.reduce_sum(self._rho(outputs - targets), axis=-1)

    def curvature_along(self, outputs, tangents):
        squares = tf.reduce_sum(tf.square(tangents), axis=-1)
        return self._information * squares


@keras.saving.register_keras_serializable(package="tfkfac")
class Gaussian(_Residual):
    """K independent outputs with unit variance: squared error, c = 2 / K.

    Args:
        scale: c; None is that of Keras' mean squared error, 2 / K.
    """

    _c_times_k = 2.0
    _information = 1.0

    def _size(self, chance):
        return 2**0.5 * tf.math.erfinv(chance)

    def _rho(self, r):
        return tf.square(r) / 2


@keras.saving.register_keras_serializable(package="tfkfac")
class LogGaussian(Gaussian):
    """Gaussian in log(1 + y): squared logarithmic error, c = 2 / K.

    Outputs below 1e-7 count as 1e-7, as in Keras. Keras takes targets in the
    same way; those that are drawn here may be as low as -1.

    Args:
        scale: c; None is that of Keras' mean squared logarithmic error, 2 / K.
    """

    def _logarithm(self, outputs: tf.Tensor) -> tf.Tensor:
        return tf.math.log1p(tf.maximum(outputs, _EPSILON))

    def sample(self, outputs, uniforms):
        return tf.math.expm1(super().sample(self._logarithm(outputs), uniforms))

    def negative_log_likelihood(self, outputs, targets):
        return super().negative_log_likelihood(
            self._logarithm(outputs), tf.math.log1p(targets)
        )

    def curvature_along(self, outputs, tangents):
        s, u = _push_forward(self._logarithm, outputs, tangents)
        return super().curvature_along(s, u)


@keras.saving.register_keras_serializable(package="tfkfac")
class Laplace(_Residual):
    """K independent outputs, density exp(-|r|) / 2: absolute error, c = 1 / K.

    The loss has no curvature but at r = 0; what the statistics are of is the
    Fisher of the density, I.

    Args:
        scale: c; None is that of Keras' mean absolute error, 1 / K.
    """

    _information = 1.0

    def _size(self, chance):
        return -tf.math.log1p(-chance)

    def _rho(self, r):
        return tf.abs(r)


@keras.saving.register_keras_serializable(package="tfkfac")
class Huber(_Residual):
    """K independent outputs, density exp(-rho(r)) / Z: Huber's loss, c = 1 / K.

    rho(r) = r^2 / 2 where |r| <= delta, else delta |r| - delta^2 / 2: the least
    informative density near the Gaussian (Huber 1964, "Robust estimation of a
    location parameter"). With m = sqrt(2 pi) erf(delta / sqrt 2) / Z,

        Z = sqrt(2 pi) erf(delta / sqrt 2) + 2 exp(-delta^2 / 2) / delta
        P(|r| <= t) = m erf(t / sqrt 2) / erf(delta / sqrt 2)   for t <= delta
        P(|r| > t) = (1 - m) exp(-delta (t - delta))            for t > delta

    and the Fisher is E[rho'(r)^2] = E[rho''(r)] = m.

    Args:
        delta: Where the loss turns from a square to a line, as in Keras.
        scale: c; None is that of Keras' mean over the K outputs, 1 / K.
    """

    def __init__(self, delta: float = 1.0, scale: float | None = None):
        super().__init__(scale)
        if not 0 < delta < math.inf:
            raise ValueError(f"Huber(delta={delta}): must be positive.")
        self.delta = float(delta)
        self._erf = math.erf(self.delta / 2**0.5)
        center = (2 * math.pi) ** 0.5 * self._erf
        log_tails = math.log(2 / self.delta) - self.delta * self.delta / 2
        z = center + math.exp(log_tails)
        self._center = self._information = center / z  # m
        self._log_tails = log_tails - math.log(z)  # log(1 - m)

    def get_config(self) -> dict:
        return {"delta": self.delta, **super().get_config()}

    def _size(self, chance):
        center = tf.minimum(chance, self._center) * (self._erf / self._center)
        inside = 2**0.5 * tf.math.erfinv(center)
        excess = tf.minimum(tf.math.log1p(-chance) - self._log_tails, 0.0)
        outside = self.delta - excess / self.delta
        return tf.where(chance <= self._center, inside, outside)

    def _rho(self, r):
        size = tf.abs(r)
        inside = tf.minimum(size, self.delta)
        return inside * (size - inside / 2)


@keras.saving.register_keras_serializable(package="tfkfac")
class HyperbolicSecant(_Residual):
    """K independent outputs, density 1 / (pi cosh r): log-cosh loss, c = 1 / K.

    Its distribution function is (2 / pi) arctan(exp r), so that
    P(|r| > t) = (4 / pi) arctan(exp(-t)); the Fisher is E[tanh^2 r] = 1 / 2
    (Johnson, Kotz and Balakrishnan 1995, "Continuous univariate
    distributions", volume 2, page 147).

    Args:
        scale: c; None is that of Keras' mean over the K outputs, 1 / K.
    """

    _information = 0.5

    def _size(self, chance):
        return -tf.math.log(tf.tan(math.pi / 4 * (1 - chance)))

    def _rho(self, r):
        return r + tf.nn.softplus(-2 * r) - math.log(2)
