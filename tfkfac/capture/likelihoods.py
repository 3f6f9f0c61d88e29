"""The predictive distributions behind losses: sampled targets and their loss.

A loss term l = c NLL + constant, with NLL the negative log-likelihood of a
`Likelihood` and c its `loss_scale`. Outputs come as [terms, K]: a row for each
entry of the unreduced loss.
"""

import abc
from collections.abc import Callable

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


@keras.saving.register_keras_serializable(package="tfkfac")
class Bernoulli(Likelihood):
    """K independent yes-or-no outputs: binary cross-entropy, c = 1 / K.

    Args:
        from_logits: Whether the outputs are logits or probabilities.
        scale: c; None is that of Keras' mean over the K outputs, 1 / K.
    """

    def __init__(self, from_logits: bool = True, scale: float | None = None):
        self.from_logits = from_logits
        self.scale = scale

    def get_config(self) -> dict:
        return {"from_logits": self.from_logits, "scale": self.scale}

    def _logits(self, outputs: tf.Tensor) -> tf.Tensor:
        if self.from_logits:
            return outputs
        p = _clip(outputs)
        return tf.math.log(p) - tf.math.log(1 - p)

    def draws(self, outputs):
        return tf.shape(outputs)[-1]

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

    def loss_scale(self, outputs):
        if self.scale is not None:
            return self.scale
        return 1 / tf.cast(tf.shape(outputs)[-1], outputs.dtype)


@keras.saving.register_keras_serializable(package="tfkfac")
class Gaussian(Likelihood):
    """K independent outputs with unit variance: squared error, c = 2 / K.

    Args:
        scale: c; None is that of Keras' mean squared error, 2 / K.
    """

    def __init__(self, scale: float | None = None):
        self.scale = scale

    def get_config(self) -> dict:
        return {"scale": self.scale}

    def draws(self, outputs):
        return tf.shape(outputs)[-1]

    def sample(self, outputs, uniforms):
        normal = 2**0.5 * tf.math.erfinv(2 * uniforms - 1)
        return outputs + tf.cast(normal, outputs.dtype)

    def negative_log_likelihood(self, outputs, targets):
        return tf.reduce_sum(tf.square(outputs - targets), axis=-1) / 2

    def curvature_along(self, outputs, tangents):
        return tf.reduce_sum(tf.square(tangents), axis=-1)

    def loss_scale(self, outputs):
        if self.scale is not None:
            return self.scale
        return 2 / tf.cast(tf.shape(outputs)[-1], outputs.dtype)


def uniforms(
    count: tf.Tensor,
    draws: int | tf.Tensor,
    *,
    seed: int,
    update: tf.Tensor,
    stream: int,
) -> tf.Tensor:
    """Returns uniform numbers in (0, 1), [count, draws], float32.

    The number at (n, k) is a function of seed, update, stream, n and k alone:
    the same in graph mode, eagerly and under XLA.

    Args:
        stream: The output of the model that they are for.
    """
    key = tf.stack([tf.constant(seed, tf.int64), tf.cast(update, tf.int64)])
    if stream:
        key = tf.random.experimental.stateless_fold_in(
            key, stream, alg="philox"
        )
    # Integers: XLA makes other floating-point numbers of the same bits.
    bits = tf.random.stateless_uniform(
        [count, draws],
        key,
        minval=None,
        maxval=None,
        dtype=tf.uint32,
        alg="philox",
    )
    bits = tf.cast(tf.bitwise.right_shift(bits, 9), tf.int32)
    return (tf.cast(bits, tf.float32) + 0.5) * 2.0**-23


def from_loss(loss: keras.losses.Loss) -> Likelihood | None:
    """Returns the likelihood of a Keras loss; None if it has none here."""
    losses = keras.losses
    wrapper = losses.MeanSquaredError.__mro__[1]
    if not isinstance(loss, wrapper) or type(loss).call is not wrapper.call:
        return None
    options = loss._fn_kwargs
    if options.get("axis", -1) != -1:
        return None
    make: dict[Callable, Callable] = {
        losses.categorical_crossentropy: Categorical,
        losses.sparse_categorical_crossentropy: Categorical,
        losses.binary_crossentropy: Bernoulli,
    }
    if loss.fn is losses.mean_squared_error:
        return Gaussian()
    if loss.fn in make:
        return make[loss.fn](from_logits=options.get("from_logits", False))
    return None
