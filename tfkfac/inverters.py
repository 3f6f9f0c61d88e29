"""How a Kronecker-factored block is damped and inverted."""

import abc
import functools
from collections.abc import Sequence

import keras
import tensorflow as tf

from tfkfac import linalg, rounding
from tfkfac.factors import Factor

# What is to be inverted: the arguments of `Inverter.invert`.
Problem = tuple[Sequence[bool], Sequence[tf.Tensor], tf.Tensor]


class Inverter(abc.ABC):
    """Turns the factors of a block into U = (F + damping)^-1 V.

    F is A (x) G for the two factors of a linear layer, and the factor itself
    for blocks with one. An inverter holds no state: what it computes at a
    refresh lies in variables of the block.
    """

    @abc.abstractmethod
    def start(
        self, factors: Sequence[Factor], dtype: tf.DType
    ) -> dict[str, tf.Tensor]:
        """Returns the state by name before a refresh: U = V, or nearly so."""

    @abc.abstractmethod
    def invert(
        self,
        diagonal: Sequence[bool],
        matrices: Sequence[tf.Tensor],
        damping: tf.Tensor,
    ) -> list[tf.Tensor]:
        """Returns the new state, not finite where it cannot be computed.

        Blocks of equal shapes come together, as the groups of one.

        Args:
            diagonal: For each factor, whether only its diagonal is given.
            matrices: The factors, [groups, dim, dim] or [groups, dim].
            damping: A scalar.
        """

    def invert_all(
        self,
        problems: Sequence[Problem],
    ) -> list[list[tf.Tensor]]:
        """Returns what `invert` does for each of several blocks.

        Args:
            problems: The arguments of `invert`; all matrices of one type.
        """
        return [self.invert(*problem) for problem in problems]

    def rounding(
        self, problem: Problem, state: Sequence[tf.Tensor]
    ) -> tf.Tensor:
        """Returns how far rounding may change U, [groups]: |error| / |U|.

        For the least favourable V, and NaN where the state is. 0, as here,
        where it is not known.

        Args:
            problem: The arguments of `invert`.
            state: What it returned.
        """
        del state
        _, matrices, damping = problem
        return tf.zeros([matrices[0].shape[0]], damping.dtype)

    def shifts(
        self, matrices: Sequence[tf.Tensor], damping: tf.Tensor
    ) -> list[tf.Tensor]:
        """Returns what is added to the diagonal of each factor, [groups] each.

        Empty, as here, where the damping is no such sum. The arguments are
        those of `invert`.
        """
        del matrices, damping
        return []

    def conditions(
        self, problem: Problem, state: Sequence[tf.Tensor]
    ) -> list[tf.Tensor]:
        """Returns the condition number of each factor, [groups] each.

        With its part of the damping, as it is inverted. Empty, as here, where
        it is not known. The arguments are those of `rounding`.
        """
        del problem, state
        return []

    @abc.abstractmethod
    def precondition(
        self, V: tf.Tensor, state: Sequence[tf.Tensor], damping: tf.Tensor
    ) -> tf.Tensor:
        """Returns U for V, both [groups, d_in, d_out].

        With one factor it is of the d_in axis.
        """

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
        return tf.expand_dims(matrix, 2) * V
    if matrix.shape[0] == 1:
        return _product_of_one(matrix, V)
    return tf.matmul(matrix, V)


def _multiply_right(V: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """Returns V M; a matrix of rank 2 is [groups, diagonal]."""
    if matrix.shape.rank == 2:
        return V * tf.expand_dims(matrix, 1)
    if matrix.shape[0] == 1:
        return _product_of_one(V, matrix)
    return tf.matmul(V, matrix)


def _product_of_one(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Returns a b, for one group faster than a batched product."""
    return tf.expand_dims(tf.matmul(tf.squeeze(a, 0), tf.squeeze(b, 0)), 0)


def _ratio(d):
    """Returns the largest over the least, [groups], for [groups, n]."""
    return tf.reduce_max(d, axis=-1) / tf.reduce_min(d, axis=-1)


def _factored_damping(a, g, damping):
    """Returns pi sqrt(l) and sqrt(l) / pi for the mean diagonals of A, G."""
    usable = tf.logical_and(a > 0, g > 0)
    pi = tf.sqrt(tf.where(usable, a, 1) / tf.where(usable, g, 1))
    root = tf.sqrt(damping)
    return pi * root, root / pi


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
        if pi is not None and not 0 < pi < float("inf"):
            raise ValueError(f"CholeskyInverter(pi={pi}): must be finite, > 0.")
        self.pi = pi

    def get_config(self) -> dict:
        return {"pi": self.pi}

    def start(self, factors, dtype):
        return {f"{f.name}/inverse": _identity(f, dtype) for f in factors}

    def shifts(self, matrices, damping):
        if len(matrices) == 1:
            return [tf.fill([matrices[0].shape[0]], damping)]
        if self.pi is not None:
            root = tf.fill([matrices[0].shape[0]], tf.sqrt(damping))
            return [self.pi * root, root / self.pi]
        a, g = map(linalg.mean_diagonal, matrices)
        return list(_factored_damping(a, g, damping))

    def invert(self, diagonal, matrices, damping):
        return self.invert_all([(diagonal, matrices, damping)])[0]

    def invert_all(self, problems):
        terms = [
            term
            for diagonal, matrices, damping in problems
            for term in zip(diagonal, matrices, self.shifts(matrices, damping))
        ]
        dense = [(m, shift) for flag, m, shift in terms if not flag]
        found = iter(linalg.by_side(linalg.damped_inverse, dense))
        inverses = iter(
            1 / (linalg.nonnegative(m) + tf.expand_dims(shift, 1))
            if flag
            else next(found)
            for flag, m, shift in terms
        )
        return [[next(inverses) for _ in ms] for _, ms, _ in problems]

    def rounding(self, problem, state):
        """As the base class says: eps times the worse `rounding.condition`.

        The error is relative in the norm of F, <U, A U G>. It may be more in
        the Euclidean norm, by what V has, from rounding, in the null space of
        F, where U does not change the model's predictions.
        """
        diagonal, matrices, _ = problem
        found = self.conditions(problem, state)
        dense = [x for flag, x in zip(diagonal, found) if not flag]
        if not dense:
            return super().rounding(problem, state)
        epsilon = rounding.epsilon(matrices[0].dtype)
        return epsilon * functools.reduce(tf.maximum, dense)

    def conditions(self, problem, state):
        """As the base class says; `rounding.condition` of dense factors."""
        diagonal, matrices, _ = problem
        return [
            _ratio(inverse) if flag else rounding.condition(matrix, inverse)
            for flag, matrix, inverse in zip(diagonal, matrices, state)
        ]

    def precondition(self, V, state, damping):
        U = _multiply(state[0], V)
        return U if len(state) == 1 else _multiply_right(U, state[1])


@keras.saving.register_keras_serializable(package="tfkfac")
class EigenInverter(Inverter):
    """Exact damping, in the joint eigenbasis of the factors.

        U = Q_A [(Q_A^T V Q_G) / (d_A d_G^T + l)] Q_G^T

    with A = Q_A diag(d_A) Q_A^T and G likewise ("normal damping", Ma et al.
    2019, appendix B). The eigendecompositions are those of the last refresh,
    the damping l is that of the step. Eigenvalues that float32 does not resolve
    are raised to what it does (`rounding.resolved`).
    """

    def start(self, factors, dtype):
        state = {}
        for factor in factors:
            ones = tf.ones([factor.groups, factor.dim], dtype)
            state[f"{factor.name}/eigenvalues"] = ones
            if not factor.diagonal:
                basis = _identity(factor, dtype)
                state[f"{factor.name}/eigenvectors"] = basis
        return state

    def invert(self, diagonal, matrices, damping):
        return self.invert_all([(diagonal, matrices, damping)])[0]

    def invert_all(self, problems):
        # The tolerance is what factored damping with pi = 1 makes up for.
        dense = [
            (matrix, tf.fill([matrix.shape[0]], tf.sqrt(damping)))
            for diagonal, matrices, damping in problems
            for flag, matrix in zip(diagonal, matrices)
            if not flag
        ]
        found = iter(linalg.by_side(_resolved_eigendecomposition, dense))
        values = []
        for diagonal, matrices, _ in problems:
            of_block = []
            for flag, matrix in zip(diagonal, matrices):
                if flag:
                    of_block.append(linalg.nonnegative(matrix))
                else:
                    of_block.extend(next(found))
            values.append(of_block)
        return values

    def rounding(self, problem, state):
        """As the base class says: eps (max d_A d_G + l) / (min d_A d_G + l).

        The directions of a dense factor mix; those of a diagonal one do not,
        and the largest of them suffers most.
        """
        diagonal, _, damping = problem
        if all(diagonal):
            return super().rounding(problem, state)
        largest = least = tf.ones([], damping.dtype)
        for d, Q in self._pairs(state):
            top = tf.reduce_max(d, axis=-1)
            largest *= top
            least *= top if Q is None else tf.reduce_min(d, axis=-1)
        epsilon = rounding.epsilon(damping.dtype)
        return epsilon * (largest + damping) / (least + damping)

    def conditions(self, problem, state):
        """As the base class says; of two factors each has sqrt(l)."""
        diagonal, _, damping = problem
        shift = damping ** (1 / len(diagonal))
        return [_ratio(d + shift) for d, _ in self._pairs(state)]

    def precondition(self, V, state, damping):
        pairs = self._pairs(state)
        (d_A, Q_A), (d_G, Q_G) = pairs if len(pairs) == 2 else (*pairs, _NO)
        if Q_A is not None:
            V = _multiply(tf.linalg.matrix_transpose(Q_A), V)
        if Q_G is not None:
            V = _multiply_right(V, Q_G)
        d = d_A[:, :, tf.newaxis]
        V = V / ((d if d_G is None else d * d_G[:, tf.newaxis, :]) + damping)
        if Q_A is not None:
            V = _multiply(Q_A, V)
        if Q_G is not None:
            V = _multiply_right(V, tf.linalg.matrix_transpose(Q_G))
        return V

    @staticmethod
    def _pairs(state):
        """Returns [(d, Q)] of each factor, Q None for a diagonal one."""
        pairs = []
        for tensor in state:
            if tensor.shape.rank == 2:
                pairs.append([tensor, None])
            else:
                pairs[-1][1] = tensor
        return pairs


def _resolved_eigendecomposition(matrix, tolerance):
    d, Q = linalg.eigendecomposition(matrix, tolerance)
    return rounding.resolved(d), Q


_NO = (None, None)  # In place of a second factor.
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
