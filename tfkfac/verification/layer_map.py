"""A call of a layer as a linear map of its weights, by automatic derivatives.

Nothing here knows what kind of layer it is, or how its block makes rows: the
Jacobian J of the pre-activation s by the weights is that of a tape around the
call alone. So strides, padding, groups, the order of axes and the bias are
those of the layer itself.
"""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from tfkfac.blocks.factored import FactoredBlock
from tfkfac.verification.use import Array, Use, in_float64


class LayerMap:
    """Products with J = ds / dW and its transpose, for one call of a layer.

    Args:
        use: The call.
        block: Whose `variables` W are, and whose matrix form they have.
    """

    def __init__(self, use: Use, block: FactoredBlock):
        self.use, self._block = use, block

    def backward(self, gradient: Array) -> Array:
        """Returns the matrix form of J^T g, for g shaped as s."""
        found = self._gradients(tf.constant(gradient))
        return in_float64(self._block.to_matrix(found))

    def _gradients(self, gradient):
        return self.use.backward(self._block.variables, gradient)

    @functools.cached_property
    def _transposed(self):
        """J^T z as a function of z, which J is the derivative of."""
        z = tf.zeros_like(self.use.source)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(z)
            back = self._gradients(z)
        return tape, back, z

    def forward(self, direction: Array) -> Array:
        """Returns J D, shaped as s.

        Args:
            direction: D in the matrix form of V, [groups, d_in, d_out].
        """
        tape, back, z = self._transposed
        dtype = self._block.variables[0].dtype
        tangents = self._block.from_matrix(tf.constant(direction, dtype))
        tangents = [tf.cast(t, v.dtype) for t, v in zip(tangents, back)]
        found = tape.gradient(back, z, output_gradients=tangents)
        if found is None:
            return np.zeros(self.use.source.shape)
        return in_float64(found)


def is_half(tensor: tf.Tensor) -> bool:
    """Whether a tensor has half precision."""
    return tensor.dtype.size < 4


class UnclearColumnsError(Exception):
    """The layer's outputs are not those of the block's matrix."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which elements of s belong to which row and column of s = W^T a.

    Attributes:
        axes: The axes of s that are of columns; rows are the other ones.
        places: Where each column is on these axes, flat, [columns, times]; -1
            where it is not known, for a group that sees nothing but zeros.
            A column that is there several times is of as many rows.
        groups, d_out: Columns are numbered through all groups.
    """

    axes: tuple[int, ...]
    places: Array
    groups: int
    d_out: int

    def rows(self, x: Array) -> Array:
        """Returns something shaped as s as [groups, rows, d_out].

        Columns that are not known are NaN.
        """
        found = _flat(x, self.axes)[:, self.places]
        found = np.where(self.places >= 0, found, np.nan)
        found = found.transpose(0, 2, 1)
        groups = found.reshape(-1, self.groups, self.d_out)
        return groups.transpose(1, 0, 2)


def _flat(x: Array, axes) -> Array:
    """Returns [rows, columns], the columns on `axes`."""
    x = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    columns = int(np.prod(x.shape[x.ndim - len(axes) :]))
    return x.reshape(-1, columns)


def find_columns(
    forward, shape: tuple[int, int, int], rng: np.random.Generator, half: bool
) -> Columns | None:
    """Finds the rows and columns of s by changes of the weights.

    A change u c^T of the kernel moves s at row r and column j by (u a_r) c_j.
    Divided by what u 1^T moves it is c_j, a number for each column.

    Args:
        forward: `LayerMap.forward`, or that of the transposed matrix.
        shape: Of V: (groups, d_in, d_out).
        rng: For u, and the order of the numbers.
        half: Whether s has half precision.

    Returns:
        The columns; None where all of a is zero.

    Raises:
        UnclearColumnsError: What the change of a column moves is no column.
    """
    groups, d_in, d_out = shape
    n = groups * d_out
    # With half precision c_j is 1 or -1, which no rounding hides.
    base, least = (2, 1e-3) if half else (1024, 1e-3)
    u = rng.normal(size=(groups, d_in, 1))
    moved = forward(np.broadcast_to(u, shape))
    seen = np.abs(moved) > least * np.abs(moved).max()
    if not seen.any():
        return None
    order = rng.permutation(n)
    digits, axes = [], set()
    for power in range(1 + int(np.log(max(n - 1, 1)) / np.log(base) + 1e-9)):
        digit = order // base**power % base
        top = max(min((n - 1) // base**power, base - 1), 1)
        step = -2.0 if half else 1 / top
        code = (1 + step * digit).reshape(groups, 1, d_out)
        ratio = np.divide(
            forward(u * code),
            moved,
            out=np.full(moved.shape, np.nan),
            where=seen,
        )
        digits.append((ratio, step, power))
        axes |= _varying(ratio)
    kept = tuple(sorted(axes))
    sizes = int(np.prod([moved.shape[a] for a in kept]))
    if sizes % n:
        raise UnclearColumnsError(
            f"a change of its {n} columns moves {sizes} places of its output"
        )
    numbers = _numbers(moved, digits, kept, order, base, least)
    places = _places(numbers, n, sizes // n)
    columns = Columns(kept, places, groups, d_out)
    if places.shape[1] > 1:
        of_row = columns.rows(moved)  # The same in all columns of a group.
        spread = of_row.max(axis=2) - of_row.min(axis=2)
        if spread.max() > least * np.abs(of_row).max():
            raise UnclearColumnsError(
                f"its {n} columns are on {sizes} places of its output, and in "
                "another order in each row"
            )
    return columns


def _places(numbers: Array, n: int, times: int) -> Array:
    """Returns the places of each column, [n, times], in their order."""
    if times == 1:
        found = np.full([n, 1], -1)
        known = numbers >= 0
        found[numbers[known], 0] = np.flatnonzero(known)
        if (found >= 0).sum() < known.sum():
            raise UnclearColumnsError(
                "a change of one column moves several of s"
            )
        return found
    if (np.bincount(numbers + 1, minlength=n + 1)[1:] != times).any():
        raise UnclearColumnsError(
            f"a change of its {n} columns moves {n * times} places of its "
            "output, of some more than of others"
        )
    return np.argsort(numbers, kind="stable").reshape(n, times)


def _varying(ratio: Array) -> set[int]:
    """Returns the axes along which a ratio is not one number."""
    found = set()
    for axis in range(ratio.ndim):
        low = np.fmin.reduce(ratio, axis=axis)
        high = np.fmax.reduce(ratio, axis=axis)
        if np.fmax.reduce(high - low, axis=None, initial=0.0) > 0.05:
            found.add(axis)
    return found


def _numbers(moved, digits, axes, order, base, least) -> Array:
    """Returns the column of each place, as read at the row that shows most."""
    size = np.abs(_flat(moved, axes))
    best = size.argmax(axis=0)
    places = np.arange(size.shape[1])
    known = size[best, places] > least * size.max()
    total = np.zeros(len(places), int)
    for ratio, step, power in digits:
        value = _flat(ratio, axes)[best, places]
        digit = np.rint((np.where(known, value, 1) - 1) / step).astype(int)
        total += digit * base**power
    inverse = np.full(len(order), -1)
    inverse[order] = np.arange(len(order))
    if total.min() < 0 or total.max() >= len(order):
        raise UnclearColumnsError("its output is not linear in its weights")
    return np.where(known, inverse[total], -1)
