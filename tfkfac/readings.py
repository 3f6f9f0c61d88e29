"""What steps tell of themselves, for a callback that watches them.

Variables outside of the state, which a step writes where somebody watches: it
waits for no host, and a callback reads them when it wants to. Other steps hold
nothing of it.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfkfac.blocks import CurvatureBlock
from tfkfac.blocks.factored import FactoredBlock
from tfkfac.inverters import Inverter, Problem

COUNTS = ("updates", "skipped", "clipped", "factors", "inversions")
NEVER = -1
_WHOLE, _PROBES = 64, 32  # Of sketches.


class Readings:
    """Sums over the updates since it was made, and the last inversions.

    Args:
        blocks: Those that this rank owns.

    Attributes:
        blocks: The same.
        counts: By `COUNTS`, int64: updates that were made, that were skipped,
            that the KL clip shortened, with factors due, with inversions due.
        clip: The sum of nu, float64.
        shares: The sums of <U, V> of each block over that of all, [blocks].
        rows: By block, N or R of its last factor update, float64.
        inverted_at: By block, the updates counted before that of its last
            inversion; `NEVER` before the first.
        sketches: By block, the `sketch` of each factor as it was then.
    """

    def __init__(self, blocks: Sequence[CurvatureBlock]):
        self.blocks = list(blocks)

        def variable(value):
            return tf.Variable(value, trainable=False)

        with tf.init_scope():
            self.counts = variable(tf.zeros([len(COUNTS)], tf.int64))
            self.clip = variable(tf.zeros([], tf.float64))
            self.shares = variable(tf.zeros([len(self.blocks)], tf.float64))
            self.rows: dict[CurvatureBlock, tf.Variable] = {}
            self.inverted_at: dict[CurvatureBlock, tf.Variable] = {}
            self.sketches: dict[CurvatureBlock, list[tf.Variable]] = {}
            self._inverses: dict[FactoredBlock, tf.Variable] = {}
            for block in self.blocks:
                self.rows[block] = variable(tf.zeros([], tf.float64))
                self.inverted_at[block] = variable(tf.constant(NEVER, tf.int64))
                self.sketches[block] = [
                    variable(tf.zeros_like(_sketch(f.moment.value())))
                    for f in block.factors
                ]
                for m in block.members:
                    unknown = np.full(1 + 2 * len(m.factors), np.nan)
                    self._inverses[m] = variable(tf.constant(unknown))

    @property
    def variables(self) -> list[tf.Variable]:
        """All that steps write."""
        return [
            self.counts,
            self.clip,
            self.shares,
            *self.rows.values(),
            *self.inverted_at.values(),
            *self._inverses.values(),
            *(v for of_block in self.sketches.values() for v in of_block),
        ]

    # In a step.

    def count(self, name: str) -> None:
        """Counts one more of what `COUNTS` names."""
        self.counts.assign_add([int(name == x) for x in COUNTS])

    def products(
        self, U: Mapping[int, tf.Tensor], V: Mapping[int, tf.Tensor]
    ) -> tf.Tensor:
        """Returns <U, V> of each block, [blocks], for U and V by variable."""
        zero = tf.zeros([], tf.float64)
        found = [
            tf.add_n(
                [
                    tf.cast(tf.reduce_sum(U[id(v)] * V[id(v)]), tf.float64)
                    for v in block.variables
                    if id(v) in V
                ]
                or [zero]
            )
            for block in self.blocks
        ]
        return tf.stack(found) if found else tf.zeros([0], tf.float64)

    def note_update(
        self, products: tf.Tensor, total: tf.Tensor, nu: tf.Tensor
    ) -> None:
        """Notes an update.

        Args:
            products: Those of `products`.
            total: Their sum over all blocks of all ranks.
            nu: The coefficient of the KL clip.
        """
        clipped = tf.cast(nu < 1, tf.int64)
        self.counts.assign_add(tf.stack([1, 0, clipped, 0, 0]))
        self.clip.assign_add(nu)
        self.shares.assign_add(tf.math.divide_no_nan(products, total))

    def note_rows(
        self, block: CurvatureBlock, divisors: Sequence[tf.Tensor]
    ) -> None:
        """Notes N or R of each sum of a block, of all ranks and micro-steps."""
        rows = tf.reduce_max(tf.stack(list(divisors)))
        self.rows[block].assign(tf.cast(rows, tf.float64))

    def note_inversion(self, blocks: Sequence[CurvatureBlock]) -> None:
        """Notes that inversions of blocks were tried in this update."""
        self.count("inversions")
        for block in blocks:
            good = [m.failures.value()[0] < 1 for m in block.members]
            good += [f.known() for f in block.factors]
            good = tf.reduce_all(tf.stack(good))
            at = self.inverted_at[block]
            at.assign(tf.where(good, self.counts[0], at))
            for factor, variable in zip(block.factors, self.sketches[block]):
                new = _sketch(factor.value())
                variable.assign(tf.where(good, new, variable))

    def note_inverses(
        self,
        members: Sequence[FactoredBlock],
        inverter: Inverter,
        problem: Problem,
        state: Sequence[tf.Tensor],
    ) -> None:
        """Notes numbers of the inverses of members of equal shapes.

        Args:
            members: The members.
            inverter: How they were inverted.
            problem: The arguments of `Inverter.invert`, for all of them.
            state: What it returned.
        """
        _, matrices, damping = problem
        n = len(members)
        nothing = tf.fill([n], tf.constant(np.nan, tf.float64))
        unknown = len(matrices) * [nothing]

        def of_groups(reduce, values):
            values = [tf.reshape(v, [n, -1]) for v in values]
            return [reduce(tf.cast(v, tf.float64)) for v in values]

        def worst(x):
            return tf.reduce_max(x, axis=1)

        def geometric(x):
            return tf.exp(tf.reduce_mean(tf.math.log(x), axis=1))

        conditions = inverter.conditions(problem, state)
        shifts = inverter.shifts(matrices, damping)
        found = [
            *of_groups(worst, [inverter.rounding(problem, state)]),
            *(of_groups(worst, conditions) or unknown),
            *(of_groups(geometric, shifts) or unknown),
        ]
        for member, row in zip(members, tf.unstack(tf.stack(found, axis=1))):
            self._inverses[member].assign(row)

    # Between steps.

    def read_counts(self) -> np.ndarray:
        """Returns `counts`."""
        return read(self.counts)

    def begin_sums(self) -> None:
        """Begins `clip` and `shares` anew; the counts go on."""
        self.clip.assign(0.0)
        self.shares.assign(tf.zeros_like(self.shares))

    def age(self, block: CurvatureBlock) -> int | None:
        """Returns the updates since that in which a block was inverted last.

        None where it was not.
        """
        at = int(read(self.inverted_at[block]))
        return None if at == NEVER else int(self.read_counts()[0]) - 1 - at

    def inverse(self, member: FactoredBlock) -> dict[str, Any]:
        """Returns "rounding", and "condition" and "shift", each [factors].

        Of the last inversion, NaN where it failed or they are not known. The
        condition is the worst of the groups', the shift (what was added to the
        diagonal of the factor) their geometric mean.
        """
        rounding, *rest = read(self._inverses[member]).tolist()
        n = len(member.factors)
        return {
            "rounding": rounding, "condition": rest[:n], "shift": rest[n:]
        }  # fmt: skip


def read(variable: tf.Variable) -> np.ndarray:
    """Returns a value by one operation; `numpy()` takes ten times as long."""
    return tf.raw_ops.ReadVariableOp(
        resource=variable.handle, dtype=variable.dtype
    ).numpy()


def _sketch(X: tf.Tensor) -> tf.Tensor:
    """Returns `sketch` in a graph."""
    if not _is_long(X.shape):
        return X
    return tf.matmul(X, tf.constant(_signs(X.shape[-1]), X.dtype))


def sketch(X: np.ndarray) -> np.ndarray:
    """Returns X times random signs / sqrt(32), [groups, n, 32].

    X itself, where it is a diagonal or has sides of up to 64. The mean of the
    squared Frobenius norm is that of X; its relative deviation is sqrt(2 / 32)
    at most, where X has rank 1.
    """
    return X @ _signs(X.shape[-1]).astype(X.dtype) if _is_long(X.shape) else X


def _is_long(shape) -> bool:
    return len(shape) == 3 and shape[-1] > _WHOLE


@functools.lru_cache
def _signs(n: int) -> np.ndarray:
    signs = np.random.default_rng(n).choice([-1.0, 1.0], [n, _PROBES])
    return signs / np.sqrt(_PROBES)
