"""How a Kronecker-factored block is damped and inverted."""

import abc
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfkfac import linalg
from tfkfac.factors import Factor


class Inverter(abc.ABC):
    """Turns the factors (A, G) of a block into U = (A (x) G + damping)^-1 V.

    An inverter holds no state: what it computes at a refresh lies in variables
    of the block, made by `build`.
    """

    @abc.abstractmethod
    def build(
        self, factors: Sequence[Factor], add_state: Callable, dtype: tf.DType
    ) -> list[tf.Variable]:
        """Makes the state, such that U = V (or nearly so) before a refresh.

        Args:
            factors: The input factor and the output factor.
            add_state: `add_state(name, initial value) -> tf.Variable`.
            dtype: The type of the state.
        """

    @abc.abstractmethod
    def invert(
        self, factors: Sequence[Factor], damping: tf.Tensor
    ) -> list[tf.Tensor]:
        """Returns the new values of the state, from the factors as they are."""

    @abc.abstractmethod
    def precondition(
        self, V: tf.Tensor, state: Sequence[tf.Tensor], damping: tf.Tensor
    ) -> tf.Tensor:
        """Returns U for V, both [groups, d_in, d_out]."""

    def get_config(self) -> dict:
        return {}

    @classmethod
    def from_config(cls, config: dict):
        return cls(**config)


def _identity(factor: Factor, dtype: tf.DType) -> tf.Tensor:
    if factor.diagonal:
        return tf.ones(factor.shape, dtype)
    return tf.eye(factor.dim, batch_shape=[factor.groups], dtype=dtype)


def _multiply(matrix: tf.Tensor, V: tf.Tensor) -> tf.Tensor:
    """Returns M V; a matrix of rank 2 is [groups, diagonal]."""
    if matrix.shape.rank == 2:
        return matrix[:, :, tf.newaxis] * V
    if matrix.shape[0] == 1:
        return tf.matmul(matrix[0], V[0])[tf.newaxis]
    return tf.matmul(matrix, V)


def _multiply_right(V: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """Returns V M; a matrix of rank 2 is [groups, diagonal]."""
    if matrix.shape.rank == 2:
        return V * matrix[:, tf.newaxis, :]
    if matrix.shape[0] == 1:
        return tf.matmul(V[0], matrix[0])[tf.newaxis]
    return tf.matmul(V, matrix)


@keras.saving.register_keras_serializable(package="tfkfac")
class CholeskyInverter(Inverter):
    """Factored damping: U = (A + pi sqrt(l) I)^-1 V (G + sqrt(l) / pi I)^-1.

    pi^2 = (tr A / dim A) / (tr G / dim G), one a group, 1 where a trace is 0
    (Martens and Grosse 2015, section 6.3). The damping l and pi are those of
    the last refresh.

    Args:
        pi: A positive number to use for pi everywhere: with 1, the
            "approximated damping" of Ma et al. 2019, appendix B. None computes
            it.
    """

    def __init__(self, pi: float | None = None):
        if pi is not None and not pi > 0:
            raise ValueError(f"CholeskyInverter(pi={pi}): must be positive.")
        self.pi = pi

    def get_config(self) -> dict:
        return {"pi": self.pi}

    def build(self, factors, add_state, dtype):
        return [
            add_state(f"{f.name}/inverse", _identity(f, dtype)) for f in factors
        ]

    def _pi(self, factors: Sequence[Factor]) -> tf.Tensor:
        a, g = (f.mean_diagonal() for f in factors)
        if self.pi is not None:
            return tf.ones_like(a) * self.pi
        usable = tf.logical_and(a > 0, g > 0)
        ratio = tf.where(usable, a, 1) / tf.where(usable, g, 1)
        return tf.sqrt(ratio)

    def invert(self, factors, damping):
        pi, root = self._pi(factors), tf.sqrt(damping)
        inverses = []
        for factor, shift in zip(factors, (pi * root, root / pi)):
            if factor.diagonal:
                inverses.append(1 / (factor.value() + shift[:, tf.newaxis]))
            else:
                inverses.append(linalg.damped_inverse(factor.value(), shift))
        return inverses

    def precondition(self, V, state, damping):
        A_inv, G_inv = state
        return _multiply_right(_multiply(A_inv, V), G_inv)


@keras.saving.register_keras_serializable(package="tfkfac")
class EigenInverter(Inverter):
    """Exact damping, in the joint eigenbasis of the factors.

        U = Q_A [(Q_A^T V Q_G) / (d_A d_G^T + l)] Q_G^T

    with A = Q_A diag(d_A) Q_A^T and G likewise ("normal damping", Ma et al.
    2019, appendix B). The eigendecompositions are those of the last refresh,
    the damping l is that of the step.
    """

    def build(self, factors, add_state, dtype):
        state = []
        for factor in factors:
            ones = tf.ones([factor.groups, factor.dim], dtype)
            state.append(add_state(f"{factor.name}/eigenvalues", ones))
            if not factor.diagonal:
                basis = _identity(factor, dtype)
                state.append(add_state(f"{factor.name}/eigenvectors", basis))
        return state

    def invert(self, factors, damping):
        values = []
        for factor in factors:
            if factor.diagonal:
                values.append(factor.value())
            else:
                values.extend(linalg.eigendecomposition(factor.value()))
        return values

    def precondition(self, V, state, damping):
        (d_A, Q_A), (d_G, Q_G) = self._split(state)
        if Q_A is not None:
            V = _multiply(tf.linalg.matrix_transpose(Q_A), V)
        if Q_G is not None:
            V = _multiply_right(V, Q_G)
        V = V / (d_A[:, :, tf.newaxis] * d_G[:, tf.newaxis, :] + damping)
        if Q_A is not None:
            V = _multiply(Q_A, V)
        if Q_G is not None:
            V = _multiply_right(V, tf.linalg.matrix_transpose(Q_G))
        return V

    @staticmethod
    def _split(state):
        """Returns ((d_A, Q_A), (d_G, Q_G)), Q None for a diagonal factor."""
        pairs = []
        for tensor in state:
            if tensor.shape.rank == 2:
                pairs.append([tensor, None])
            else:
                pairs[-1][1] = tensor
        return pairs


_BY_NAME = {"cholesky": CholeskyInverter, "eigen": EigenInverter}


def get(identifier: str | Inverter) -> Inverter:
    """Returns the inverter of that name, or the one given."""
    if isinstance(identifier, Inverter):
        return identifier
    if identifier in _BY_NAME:
        return _BY_NAME[identifier]()
    raise ValueError(
        f"KFAC(inverter={identifier!r}): must be one of {sorted(_BY_NAME)} or "
        "a tfkfac.Inverter."
    )
