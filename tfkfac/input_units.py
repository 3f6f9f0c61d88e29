"""The units of a layer's inputs, and damping by them.

A layer s = W^T a + b is the same function of inputs in other units, and from
another zero, with other weights. Damping that adds to the diagonal of A is not
the same then: it is small for inputs with large numbers, and large for inputs
with small ones. Here input j has the unit u_j, with the mean m_j over the rows,

    u_j^2 = E (a_j - m_j)^4 / 3 E (a_j - m_j)^2

which is its standard deviation where it is normally distributed. For an input
that is v in a few rows and 0 in the others it is v / sqrt(3), however few they
are: the variance would be near 0, and the damping with it. The damping is that
of the weights w_j u_j of inputs (a_j - m_j) / u_j, with n = R / N,

    A + r n (diag(u^2, 0) + (m, 1) (m, 1)^T)       r = sqrt(lambda / n g)
    G + sqrt(lambda n g) I                         g = tr G / dim G

that is Martens and Grosse's factored damping (2015, section 6.3), for inputs
that all have mean 0 and variance 1. U for other units and zeros of the inputs,
and weights that make the function the same, is that U in the new weights: the
steps are the same functions (theorem 1 there, which damping breaks).
"""

import tensorflow as tf

POWERS = 4


def size(channels: int) -> int:
    """Returns the length of `powers`."""
    return 1 + POWERS * channels


def powers(
    rows: tf.Tensor, mask: tf.Tensor | None, dtype: tf.DType
) -> tf.Tensor:
    """Returns sums of the powers 0 to 4 of inputs, [1, 1 + 4 channels].

    What is not finite counts 0: A says so.

    Args:
        rows: [rows, channels].
        mask: 1 for rows that count and 0 for others, [rows, 1]; None for all.
        dtype: The type of the result.
    """
    x = tf.cast(rows, dtype)
    if mask is None:
        count = tf.cast(tf.shape(x)[0], dtype)
    else:
        mask = tf.cast(mask, dtype)
        x, count = tf.math.multiply_no_nan(x, mask), tf.reduce_sum(mask)
    square = tf.square(x)
    terms = [x, square, square * x, tf.square(square)]
    sums = [tf.reduce_sum(term, axis=0) for term in terms]
    found = tf.concat([tf.reshape(count, [1]), *sums], axis=0)
    finite = tf.math.is_finite(found)
    return tf.where(finite, found, tf.zeros_like(found))[tf.newaxis]


def squared_units(P: tf.Tensor, inputs: int) -> tf.Tensor:
    """Returns u^2 of each input, [groups, inputs].

    An input whose variance is lost in the rounding of its mean square takes
    that mean square, and one that is 0 the mean of the others.

    Args:
        P: The average of `powers`, [groups, 1 + 4 channels].
        inputs: A multiple of the channels, such as those of a patch.
    """
    resolution = 1e-5 if P.dtype == tf.float32 else 1e-13
    P = tf.cast(P, tf.float64)
    moments = tf.math.divide_no_nan(P[:, 1:], P[:, :1])
    m, m2, m3, m4 = tf.split(moments, POWERS, axis=1)
    variance = m2 - tf.square(m)
    fourth = m4 - 4 * m * m3 + 6 * tf.square(m) * m2 - 3 * m**4
    # E x^4 >= (E x^2)^2, whatever the rounding.
    fourth = tf.maximum(fourth, tf.square(variance)) / 3
    resolved = variance > resolution * m2
    u = tf.where(resolved, tf.math.divide_no_nan(fourth, variance), m2)
    mean = tf.reduce_mean(u, axis=1, keepdims=True)
    mean = tf.where(mean > 0, mean, 1.0)
    u = tf.where(u > 0, u, mean)
    return tf.tile(u, [1, inputs // u.shape[1]])


def damped(
    A: tf.Tensor, G: tf.Tensor, P: tf.Tensor, damping: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns damped A, and what is to be added to the diagonal of G.

    Args:
        A: [groups, inputs + 1, inputs + 1], the last row that of the bias.
        G: Its mean diagonal g, [groups].
        P: The average of `powers`.
        damping: lambda.
    """
    n = A[:, -1, -1]
    usable = tf.logical_and(n > 0, G > 0)
    of_both = tf.where(usable, n * G, 1)
    r = tf.sqrt(damping / of_both)
    u = tf.cast(squared_units(P, A.shape[-1] - 1), A.dtype)
    u = tf.pad(n[:, tf.newaxis] * u, [[0, 0], [0, 1]])
    mean = A[:, :, -1:]
    about = tf.matmul(mean, mean, transpose_b=True)
    about = tf.math.divide_no_nan(about, n[:, tf.newaxis, tf.newaxis])
    change = tf.linalg.set_diag(about, tf.linalg.diag_part(about) + u)
    return A + r[:, tf.newaxis, tf.newaxis] * change, tf.sqrt(damping * of_both)
