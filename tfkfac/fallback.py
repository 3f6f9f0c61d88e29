"""What becomes of variables that no curvature block takes."""

import abc
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from tfkfac.estimator import state_dtype
from tfkfac.registry import Registration
from tfkfac.state import Curvature

BETAS = 0.9, 0.999
EPSILON = 1e-7
PEAK_RATE = 3e-3  # At the largest learning rate so far.


class Fallback(abc.ABC):
    """How the variables without a block are updated.

    Attributes:
        name: What it is called in the report.
        names: Of its state in the curvature.
    """

    name: str
    names: Sequence[str] = ()

    @abc.abstractmethod
    def claims(self, variable: keras.Variable) -> bool:
        """Whether it moves a variable itself, outside momentum and KL clip."""

    @abc.abstractmethod
    def step(
        self, variable: keras.Variable, V: tf.Tensor, eta: tf.Tensor
    ) -> tf.Tensor:
        """Returns what is added to a variable that it claims.

        Args:
            variable: The variable.
            V: Its clipped gradient, in the type of the state.
            eta: The learning rate of the optimizer, in that type.
        """


class PlainGradient(Fallback):
    """U = V: the variables go the way of all others, undamped."""

    name = "plain gradient"

    def claims(self, variable):
        del variable
        return False

    def step(self, variable, V, eta):
        raise ValueError(f"The plain gradient claims no {variable.path!r}.")


class Adam(Fallback):
    """Adam (Kingma and Ba 2015, section 2), as `keras.optimizers.Adam` is.

        m <- b1 m + (1 - b1) V,    v <- b2 v + (1 - b2) V^2
        c_i <- b_i c_i + (1 - b_i)
        step = -r (sqrt(c_2) / c_1) m / (sqrt(v) + epsilon)

    c_i is 1 - b_i^k after k updates of the variable, whenever they began. The
    rate r is `fallback_learning_rate`, or, where that is None, 0.003 times the
    learning rate over the largest one that the variable has seen: decays reach
    it, and neither a warm-up nor the size of the learning rate does.

    0.003 is between what was best on two small problems, a convolutional
    network on digits with half of its layers skipped and a language model with
    a skipped embedding: 0.01 and 0.03 where rates decayed, 0.001 and 0.003
    where they were constant, on digits. From 0.001 to 0.01 all were better than
    the plain gradient, on MNIST at 0.001 too.

    All ranks have all of the moments, and make the same step.

    Args:
        optimizer: The `KFAC`, for the rate.
        registration: What has no block.
        curvature: Where the moments lie.
    """

    name = "Adam"

    def __init__(
        self, optimizer, registration: Registration, curvature: Curvature
    ):
        self._optimizer = optimizer
        self._state: Mapping[int, list[tf.Variable]] = {}
        self.names = []
        for v, path in zip(registration.fallback, registration.paths):
            dtype = state_dtype(v)
            zeros = tf.zeros(v.shape, dtype)
            start = {
                "first_moment": zeros,
                "second_moment": zeros,
                "weights": tf.zeros([2], dtype),  # c_1, c_2.
                "peak": tf.zeros([], dtype),  # Of the learning rate.
            }
            names = [f"{path}/{key}" for key in start]
            self._state[id(v)] = [
                curvature.add(name, initial, required=False)
                for name, initial in zip(names, start.values())
            ]
            self.names += names

    def claims(self, variable):
        return id(variable) in self._state

    def step(self, variable, V, eta):
        m, v, weights, peak = self._state[id(variable)]
        betas = tf.constant(BETAS, V.dtype)
        b1, b2 = tf.unstack(betas)
        weights.assign(betas * weights + (1 - betas))
        m.assign(b1 * m + (1 - b1) * V)
        v.assign(b2 * v + (1 - b2) * tf.square(V))
        peak.assign(tf.maximum(peak, eta))
        c1, c2 = tf.unstack(weights)
        rate = self._rate(eta, peak)
        return -rate * (tf.sqrt(c2) / c1) * m / (tf.sqrt(v) + EPSILON)

    def _rate(self, eta, peak):
        """Returns r for the learning rate and the largest one so far."""
        if "fallback_learning_rate" in self._optimizer.hyperparameters:
            return self._optimizer.at_update(
                "fallback_learning_rate", eta.dtype
            )
        return PEAK_RATE * tf.math.divide_no_nan(eta, peak)


def make(
    optimizer, registration: Registration, curvature: Curvature
) -> Fallback:
    """Returns the fallback that the `fallback` of a `KFAC` names."""
    if optimizer.fallback == "gradient":
        return PlainGradient()
    return Adam(optimizer, registration, curvature)
