"""Which distribution is behind a loss, and the numbers that draw from it."""

import numbers
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.capture import distributions
from tfkfac.capture.distributions import Likelihood

_SCRAMBLE = 0x02461E293EC8F720  # TensorFlow's key for seeds.


def uniforms(
    count: tf.Tensor,
    draws: int | tf.Tensor,
    *,
    seed: int,
    update: tf.Tensor,
    stream: int,
    begin: int | tf.Tensor = 0,
) -> tf.Tensor:
    """Returns uniform numbers in (0, 1), [count, draws], float32.

    The number at (n, k), which is in row n - begin, is a function of seed,
    update, stream, n and k alone: the same in graph mode, eagerly and under
    XLA, where `begin` need not be known when it compiles.

    Args:
        count: Of the rows.
        draws: Of numbers in a row.
        seed, update: As of the optimizer.
        stream: The output of the model that they are for.
        begin: The first n.
    """
    key = tf.stack([tf.constant(seed, tf.int64), tf.cast(update, tf.int64)])
    if stream:
        key = tf.random.experimental.stateless_fold_in(
            key, stream, alg="philox"
        )
    # As TensorFlow scrambles seeds, in words that XLA does not change.
    words = _bits(4, tf.constant(_SCRAMBLE, tf.uint64), tf.cast(key, tf.uint64))
    key, high = tf.unstack(tf.bitcast(tf.reshape(words, [2, 2]), tf.uint64))
    # Four numbers have one counter (Salmon et al. 2011, Philox 4x32).
    first = tf.cast(begin, tf.int64) * tf.cast(draws, tf.int64)
    counter = tf.stack([tf.cast(first // 4, tf.uint64), high])
    bits = _bits(count * draws + 3, key, counter)
    bits = tf.slice(bits, [first % 4], tf.cast([count * draws], tf.int64))
    bits = tf.reshape(bits, [count, draws])
    bits = tf.cast(tf.bitwise.right_shift(bits, 9), tf.int32)
    return (tf.cast(bits, tf.float32) + 0.5) * 2.0**-23


def _bits(count, key, counter):
    """Returns integers: XLA makes other floating-point numbers of them."""
    return tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[count],
        key=tf.reshape(key, [1]),
        counter=counter,
        alg=tf.random.Algorithm.PHILOX.value,
        dtype=tf.uint32,
    )


def from_loss(loss: keras.losses.Loss) -> Likelihood | None:
    """Returns the likelihood of a Keras loss; None if it has none here."""
    losses = keras.losses
    wrapper = keras_compat.LossFunctionWrapper
    if not isinstance(loss, wrapper) or type(loss).call is not wrapper.call:
        return None
    options = keras_compat.options_of(loss)
    if options.get("axis", -1) != -1:
        return None
    with_logits = {
        losses.categorical_crossentropy: distributions.Categorical,
        losses.sparse_categorical_crossentropy: distributions.Categorical,
        losses.binary_crossentropy: distributions.Bernoulli,
    }
    if loss.fn in with_logits:
        from_logits = options.get("from_logits", False)
        return with_logits[loss.fn](from_logits=from_logits)
    if loss.fn is losses.kl_divergence:
        # Of probabilities: the cross-entropy less the targets' entropy.
        return distributions.Categorical(from_logits=False)
    if loss.fn is losses.huber:
        return _huber(options.get("delta", 1.0))
    plain: dict[Callable, Callable] = {
        losses.mean_squared_error: distributions.Gaussian,
        losses.mean_squared_logarithmic_error: distributions.LogGaussian,
        losses.mean_absolute_error: distributions.Laplace,
        losses.log_cosh: distributions.HyperbolicSecant,
    }
    return plain[loss.fn]() if loss.fn in plain else None


def _huber(delta: Any) -> Likelihood | None:
    """Returns the likelihood if `delta` is a number, and makes a density."""
    if not isinstance(delta, numbers.Real):
        return None
    if not 0 < float(delta) < float("inf"):
        return None
    return distributions.Huber(float(delta))
