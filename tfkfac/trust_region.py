"""The bound on the KL divergence of a step, where it adapts.

The bound of `kl_clip` is that of a quadratic model, and how far this model can
be trusted is not known before: it is learnt from the slope of the loss along
the last step m, before it and after it. With V the gradient of an update,

    r = <V_t, m_(t-1)> / |<V_(t-1), m_(t-1)>|
    kl_clip <- kl_clip exp(-RATE r),    r held within [-1, 1]

r is -1 where the slope has not changed, 0 where the step went to the minimum
along it, and positive where it went beyond. V_t is of another batch than m, so
that the slope after the step is that of the expected loss; and it is the
gradient of an update that is made anyway. Nothing else is evaluated: neither
moving statistics nor random numbers see it. It is the idea of the reduction
ratio (Martens and Grosse 2015, section 6.5), by slopes in place of losses, and
that of hypergradient descent (Baydin et al. 2018), with a bound in place of the
rate.

It is r = 0 that is aimed at. The slope before the step is that of the batch of
m, and mostly noise where batches are small: any r above 0, times that, would
have the expected loss rise in the end.

The batches of an epoch have no example in common. Where they are few, the next
one loses what one gains, and r is positive however short the step is. So the
bound stays above a part of what it begins with. Upwards it has no limit but
that of its type: the squared error of targets in the thousands counts millions
of nats.
"""

from collections.abc import Callable

import tensorflow as tf

from tfkfac.schedules import Hyperparameter, is_number, stored

START = 1e-3  # With a momentum of up to 0.5, or a schedule of it.
RATE = 0.2
PART = 0.03  # Of the start, which the bound does not fall below.
LEAST, MOST = 1e-8, 1e30


class TrustRegion(Hyperparameter):
    """`kl_clip`: "auto", a bound that adapts until a number is assigned; or a
    number, which has the same variables.

    Args:
        add_variable: Makes its variables, as `Optimizer.add_variable`.
        momentum: mu, a number or a schedule.
        number: Of what is given; None for "auto".

    Attributes:
        is_given: Whether it was given as a number.
    """

    def __init__(
        self,
        add_variable: Callable,
        momentum: float | Callable,
        number: float | None = None,
    ):
        self.is_given = number is not None
        super().__init__(
            "kl_clip",
            start(momentum) if number is None else number,
            minimum=0.0,
            exclusive=True,
            below=None,
            add_variable=add_variable,
        )
        self._adapts = add_variable(
            shape=(),
            initializer="zeros" if self.is_given else "ones",
            dtype="bool",
            name="kl_clip_adapts",
        )
        # <V, m> of the last update; 0 before the first.
        self._slope = add_variable(
            shape=(), initializer="zeros", name="last_slope"
        )
        self._clipped = add_variable(
            shape=(), initializer="zeros", dtype="bool", name="last_was_clipped"
        )

    @property
    def kind(self) -> str:
        return "a number" if self.is_given else "auto"

    def assign(self, value: float) -> None:
        """Sets the bound, which stays from there on."""
        super().assign(value)
        self._adapts.assign(False)

    @property
    def adapts(self) -> bool:
        """Whether no number was given or assigned."""
        return not self.is_given and bool(self._adapts.numpy())

    def config(self) -> float | str:
        return "auto" if self.adapts else super().config()

    def adapt(self, slope: tf.Tensor, momentum: tf.Tensor) -> None:
        """Adapts the bound, before an update.

        A step that the bound did not shorten tells nothing about it.

        Args:
            slope: <V_t, m_(t-1)>, a float64 scalar.
            momentum: mu, a float64 scalar.
        """
        before = _number(self._slope)
        r = tf.math.divide_no_nan(slope, tf.abs(before))
        change = -RATE * tf.clip_by_value(r, -1.0, 1.0)
        known = tf.logical_and(tf.not_equal(before, 0), tf.math.is_finite(r))
        counts = tf.logical_and(self._clipped.value, known)
        counts = tf.logical_and(counts, self._adapts.value)
        bound = _number(self._variable)
        begin = tf.minimum(_allowed_by(momentum), START)
        least = tf.maximum(PART * begin, LEAST)
        new = tf.clip_by_value(bound * tf.exp(change), least, MOST)
        bound = tf.where(counts, new, bound)
        self._variable.assign(tf.cast(bound, self._variable.dtype))

    def note(self, slope: tf.Tensor, clipped: tf.Tensor) -> None:
        """Notes <V_t, m_t> of the update, and whether nu was less than 1.

        What the type cannot hold tells nothing.
        """
        slope = tf.cast(slope, self._slope.dtype)
        known = tf.math.is_finite(slope)
        self._slope.assign(tf.where(known, slope, tf.zeros_like(slope)))
        self._clipped.assign(clipped)


def start(momentum: float | Callable) -> float:
    """Returns the bound before it adapts."""
    if is_number(momentum) and 0 <= momentum < 1:
        return max(LEAST, min(START, _allowed_by(stored(momentum))))
    return START


def _allowed_by(momentum):
    """Returns what a bound begins with at most.

    m comes to up to 1 / (1 - mu) times what the bound is of, and its divergence
    goes with the square of that.
    """
    return 4 * START * (1 - momentum) ** 2


def _number(variable) -> tf.Tensor:
    """Returns the value now; a cast to its own type would be the variable."""
    return tf.cast(tf.convert_to_tensor(variable.value), tf.float64)
