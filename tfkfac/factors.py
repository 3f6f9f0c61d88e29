"""Running averages of second moments."""

import abc
from collections.abc import Callable

import tensorflow as tf

from tfkfac import linalg
from tfkfac.tracing import traced_once


class Factor(abc.ABC):
    """The debiased running average of a second moment X.

        M_k = rho M_(k-1) + (1 - rho) X_k
        c_k = rho c_(k-1) + (1 - rho)        factor = M_k / c_k

    so that the first factor equals X_1 (Martens and Grosse 2015, section 5,
    with the bias of the start removed).

    Args:
        name: "input_factor" or "output_factor".
        groups: How many independent matrices it holds.
        dim: The size of their sides.
        rows_are_terms: Whether X is a sum over rows divided by the number N of
            loss terms (input factors) or by that of the rows, R (output
            factors).
    """

    def __init__(
        self, name: str, groups: int, dim: int, *, rows_are_terms: bool
    ):
        self.name, self.groups, self.dim = name, groups, dim
        self.rows_are_terms = rows_are_terms

    def build(
        self, add_state: Callable, dtype: tf.DType, accumulates: bool
    ) -> None:
        """Makes the state.

        Args:
            add_state: `add_state(name, initial value) -> tf.Variable`.
            dtype: Its type.
            accumulates: Whether sums over micro-steps are to be kept.
        """
        self.moment = add_state(
            f"{self.name}/moment", tf.zeros(self.shape, dtype)
        )
        self.weight = add_state(f"{self.name}/weight", tf.zeros([], dtype))
        if accumulates:
            vector = tf.zeros([self.groups, self.dim], dtype)
            self.pending = add_state(f"{self.name}/pending", vector)

    def update(self, X: tf.Tensor, decay: tf.Tensor) -> None:
        """Takes X, [groups, dim, dim] or its diagonal, into the average.

        An X that is not finite is left out; an average that is not finite
        starts anew.
        """
        moment, weight = self.moment.value(), self.weight.value()
        moment, weight = _average(moment, weight, X, decay)
        self.moment.assign(moment)
        self.weight.assign(weight)

    def known(self) -> tf.Tensor:
        """Returns whether there was an update."""
        return tf.not_equal(self.weight.value(), 0)

    def value(self) -> tf.Tensor:
        """Returns M_k / c_k; zero before the first update."""
        return tf.math.divide_no_nan(self.moment.value(), self.weight)

    @abc.abstractmethod
    def accumulate(self, total: tf.Tensor, started: tf.Tensor) -> None:
        """Adds the sum over the rows of a micro-step.

        Args:
            total: In the shape of the state.
            started: Whether there is a sum to add it to.
        """

    @abc.abstractmethod
    def take_sum(self) -> tf.Tensor:
        """Returns the sum, and leaves the state as without one."""

    @property
    @abc.abstractmethod
    def diagonal(self) -> bool:
        """Whether only the diagonal is kept."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of the state."""


def _average(moment, weight, X, decay):
    """Returns M_k and c_k for M_(k-1) and c_(k-1); as they were for a bad X."""
    sums = linalg.scaled_sums([X, moment])
    old, new, weight = _parts(*sums, weight, decay)
    times = tf.math.multiply_no_nan  # What counts 0 may be anything.
    return times(moment, old) + times(X, new), weight


@traced_once
def _parts(of_X, of_moment, weight, decay):
    """Returns what M_(k-1) and X count in M_k, and c_k.

    Args:
        of_X, of_moment: Sums that are finite where X and M_(k-1) are.
        weight: c_(k-1).
        decay: rho.
    """
    one, zero = tf.ones_like(decay), tf.zeros_like(decay)
    usable = tf.math.is_finite(of_X)
    sound = tf.math.is_finite(tf.stack([of_moment, weight]))
    sound = tf.logical_and(tf.reduce_all(sound), weight > 0)
    old = tf.where(usable, tf.where(sound, decay, zero), one)
    new = tf.where(usable, 1 - decay, zero)
    return old, new, tf.math.multiply_no_nan(weight, old) + new


class DenseFactor(Factor):
    """A factor with all its elements: [groups, dim, dim].

    A sum over micro-steps takes no second matrix: until it is complete it lies
    in the strictly lower triangle of `moment`, its diagonal in `pending`, and
    the average in the upper triangle.
    """

    def accumulate(self, total, started):
        diagonal = tf.linalg.diag_part(total)
        # Selected, not subtracted: infinities must not reach the average.
        lower = tf.linalg.band_part(total, -1, 0)
        lower = tf.linalg.set_diag(lower, tf.zeros_like(diagonal))
        upper = tf.linalg.band_part(self.moment, 0, -1)
        self.moment.assign(lower + tf.where(started, self.moment, upper))
        self.pending.assign(diagonal + tf.where(started, self.pending, 0))

    def take_sum(self):
        upper = tf.linalg.band_part(self.moment, 0, -1)
        lower = self.moment - upper
        total = lower + tf.linalg.matrix_transpose(lower)
        total = tf.linalg.set_diag(total, self.pending)
        strictly = upper - tf.linalg.band_part(upper, 0, 0)
        self.moment.assign(upper + tf.linalg.matrix_transpose(strictly))
        return total

    @property
    def diagonal(self) -> bool:
        return False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.groups, self.dim, self.dim)


class DiagonalFactor(Factor):
    """A factor of which only the diagonal is kept: [groups, dim]."""

    def accumulate(self, total, started):
        self.pending.assign(total + tf.where(started, self.pending, 0))

    def take_sum(self):
        return self.pending.value()

    @property
    def diagonal(self) -> bool:
        return True

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.groups, self.dim)
