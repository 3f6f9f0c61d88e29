"""Functions of symmetric matrices, batched over a leading `groups` axis."""

import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfkfac.tracing import traced_by_type, traced_once


def second_moment(
    rows: tf.Tensor,
    *,
    append_one: bool,
    count: tf.Tensor,
    product_dtype: tf.DType,
    dtype: tf.DType,
    diagonal: bool = False,
) -> tf.Tensor:
    """Returns the sum over the rows of x x^T.

    Args:
        rows: [groups, rows, dim].
        append_one: Whether each x ends in a 1 that `rows` does not hold.
        count: The number of those ones: the number of rows that are not zero
            by masking.
        product_dtype: The type that the product runs in. For half precision
            the rows are scaled such that no sum overflows.
        dtype: The type of the result.
        diagonal: Whether only the diagonal is wanted.

    Returns:
        [groups, dim, dim] or [groups, dim], with `append_one` dim + 1.
    """
    groups = rows.shape[0]
    if diagonal:
        squares = tf.reduce_sum(tf.square(tf.cast(rows, dtype)), axis=1)
        if not append_one:
            return squares
        one = tf.fill([groups, 1], tf.cast(count, dtype))
        return tf.concat([squares, one], axis=1)
    scale = tf.ones([], dtype)
    if product_dtype.size == 2:
        largest = tf.reduce_max(tf.abs(tf.cast(rows, dtype)))
        scale = largest * tf.sqrt(tf.cast(tf.shape(rows)[1], dtype))
        scale = tf.where(scale > 0, scale, 1)
        x = tf.cast(tf.cast(rows, dtype) / scale, product_dtype)
    else:
        x = tf.cast(rows, product_dtype)
    # One product takes less time than a batch of one.
    S = tf.expand_dims(_gram(tf.squeeze(x, 0)), 0) if groups == 1 else _gram(x)
    S = tf.cast(S, dtype) * tf.square(scale)
    if not append_one:
        return S
    return append_sums(S, tf.reduce_sum(tf.cast(rows, dtype), axis=1), count)


# Products of a matrix with itself are done by blocks of at most this side.
_WIDE = 512


def _gram(x: tf.Tensor) -> tf.Tensor:
    """Returns x^T x; where it is large, the blocks above the diagonal once."""
    wide = x.shape[-1] > 2 * _WIDE
    return _gram_by_blocks(x) if wide else tf.matmul(x, x, transpose_a=True)


@traced_once
def _gram_by_blocks(x):
    def gram(x):
        if x.shape[-1] <= _WIDE:
            return tf.matmul(x, x, transpose_a=True)
        m = _split(x)
        a, b = x[..., :m], x[..., m:]
        right = tf.matmul(a, b, transpose_a=True)
        below = tf.linalg.matrix_transpose(right)
        return _blocks(gram(a), right, below, gram(b))

    return gram(x)


def append_sums(S: tf.Tensor, sums: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Returns the second moment of rows that end in a 1, for that without it.

    Args:
        S: [groups, dim, dim].
        sums: Of the rows, [groups, dim].
        count: Of the ones.
    """
    s = sums[:, :, tf.newaxis]
    corner = tf.fill([S.shape[0], 1, 1], tf.cast(count, S.dtype))
    right = tf.concat([s, corner], axis=1)
    return tf.concat(
        [tf.concat([S, tf.linalg.matrix_transpose(s)], axis=1), right], axis=2
    )


def all_finite(tensors: Sequence[tf.Tensor], squares=False) -> tf.Tensor:
    """Returns whether all elements of all tensors are finite, a scalar; with
    `squares`, and the sum of the squares of each, as its type holds it."""
    sums = _squares if squares else scaled_sums
    finite = []
    for dtype in {t.dtype: None for t in tensors if t.dtype.is_floating}:
        found = sums([t for t in tensors if t.dtype == dtype])
        finite.append(
            tf.reduce_all(tf.math.is_finite(tf.stack(found)))
            if len(found) > 1
            else tf.math.is_finite(found[0])
        )
    return functools.reduce(tf.logical_and, finite or [tf.constant(True)])


def _squares(tensors):
    return _sums([t * t for t in tensors])


def scaled_sums(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns a scalar of each that is finite if and only if its elements are.

    In a third of the time of flags for the elements. They are scaled, so that
    sums of finite numbers are finite. The tensors are of one floating type.
    """
    scale = tf.constant(2.0**-64, tensors[0].dtype)
    return _sums([t * scale for t in tensors])


def _sums(tensors):
    ranks = dict.fromkeys(t.shape.rank for t in tensors)
    axes = {rank: tf.constant([*range(rank)], tf.int32) for rank in ranks}
    return [tf.reduce_sum(t, axes[t.shape.rank]) for t in tensors]


def mean_diagonal(matrix: tf.Tensor) -> tf.Tensor:
    """Returns tr M / dim M, [groups]; of rank 2, M is [groups, diagonal]."""
    diagonal = matrix.shape.rank == 2
    values = matrix if diagonal else _diagonal(matrix)
    return tf.reduce_mean(values, axis=-1)


def _diagonal(matrix: tf.Tensor) -> tf.Tensor:
    """As `tf.linalg.diag_part`, by one operation in place of four."""
    return tf.raw_ops.MatrixDiagPart(input=matrix)


def _of_each(numbers: tf.Tensor, rank: int) -> tf.Tensor:
    """Returns [groups, 1, ...] of this rank for [groups]."""
    return tf.reshape(numbers, [-1, *[1] * (rank - 1)])


def nonnegative(diagonal: tf.Tensor) -> tf.Tensor:
    """Returns the diagonal of a semi-definite matrix; NaN for what is < 0."""
    return tf.where(diagonal >= 0, diagonal, float("nan"))


_LEAF = 192  # Blocks of this side have routines of their own.


def damped_inverse(matrix: tf.Tensor, damping: tf.Tensor) -> tf.Tensor:
    """Returns (M + damping I)^-1 = L^-T L^-1, for M + damping I = L L^T.

    By blocks, n^3 multiplications in all, nearly all in matrix products: 2/3
    for L^-1, which L follows from block by block, and 1/3 for the product. In
    float64 there is one block. NaN where it is not positive definite.

    Args:
        matrix: [groups, n, n], symmetric positive semi-definite.
        damping: [groups].
    """
    if matrix.dtype == tf.float64 or matrix.shape[-1] <= _LEAF:
        inverse = _DAMPED_INVERSE[matrix.dtype](matrix, damping)
        inverse.set_shape(matrix.shape)
        return inverse
    return _damped_inverse_by_blocks(matrix, damping)


@traced_once
def _damped_inverse_by_blocks(matrix, damping):
    M = _damped(matrix, damping)
    return _product_with_transpose(_inverse_of_cholesky(M))


def _damped_inverse_at_once(matrix, damping):
    L = _inverse_of_leaf(_damped(matrix, damping))
    return _symmetric(tf.matmul(L, L, transpose_a=True))


_DAMPED_INVERSE = traced_by_type(_damped_inverse_at_once, [3, 1])


def _damped(matrix, damping):
    diagonal = _diagonal(matrix) + _of_each(damping, 2)
    return tf.raw_ops.MatrixSetDiag(input=matrix, diagonal=diagonal)


def _identity_like(matrix):
    ones = tf.ones_like(_diagonal(matrix))
    return tf.raw_ops.MatrixDiag(diagonal=ones)


def _inverse_of_leaf(M: tf.Tensor) -> tf.Tensor:
    """Returns L^-1, lower triangular, for M = L L^T; else NaN."""
    L = tf.linalg.triangular_solve(tf.linalg.cholesky(M), _identity_like(M))
    # An infinite matrix has zeros here.
    good = tf.reduce_all(_diagonal(L) > 0, axis=-1)
    return tf.where(_of_each(good, 3), L, float("nan"))


def _inverse_of_cholesky(M: tf.Tensor) -> tf.Tensor:
    """As `_inverse_of_leaf`, by blocks."""
    n, m = M.shape[-1], _split(M)
    if n <= _LEAF:
        return _inverse_of_leaf(M)
    first = _inverse_of_cholesky(M[:, :m, :m])
    below = tf.matmul(M[:, m:, :m], first, transpose_b=True)  # Of L.
    rest = M[:, m:, m:] - tf.matmul(below, below, transpose_b=True)
    last = _inverse_of_cholesky(rest)
    corner = -tf.matmul(last, tf.matmul(below, first))
    zeros = tf.zeros([M.shape[0], m, n - m], M.dtype)
    return _blocks(first, zeros, corner, last)


def _product_with_transpose(L: tf.Tensor) -> tf.Tensor:
    """Returns L^T L for a lower triangular L."""
    n, m = L.shape[-1], _split(L)
    if n <= 2 * _LEAF:
        return _symmetric(tf.matmul(L, L, transpose_a=True))
    first, corner, last = L[:, :m, :m], L[:, m:, :m], L[:, m:, m:]
    top = _product_with_transpose(first)
    top += _symmetric(_gram(corner))
    below = tf.matmul(last, corner, transpose_a=True)
    right = tf.linalg.matrix_transpose(below)
    return _blocks(top, right, below, _product_with_transpose(last))


def _symmetric(matrix: tf.Tensor) -> tf.Tensor:
    """Returns the matrix without the asymmetry that rounding leaves."""
    return (matrix + tf.linalg.matrix_transpose(matrix)) / 2


def _split(matrix: tf.Tensor) -> int:
    """Returns about half of the side, a multiple of 16."""
    return -(-matrix.shape[-1] // 32) * 16


def _blocks(a, b, c, d) -> tf.Tensor:
    """Returns [[a, b], [c, d]]."""
    return tf.concat(
        [tf.concat([a, b], axis=-1), tf.concat([c, d], axis=-1)], axis=-2
    )


def by_side(
    function: Callable[..., tf.Tensor | tuple[tf.Tensor, ...]],
    pairs: Sequence[tuple[tf.Tensor, tf.Tensor]],
) -> list:
    """Calls a function once for all matrices of one side.

    Args:
        function: Of matrices, [groups, n, n], and numbers, [groups]; it returns
            a tensor or a tuple of tensors of the same first axis.
        pairs: Matrices, each [groups, n, n], of one type, and numbers,
            [groups].

    Returns:
        What it gives for each.
    """
    found = [None] * len(pairs)
    for side in {m.shape[-1]: None for m, _ in pairs}:
        of_side = [i for i, (m, _) in enumerate(pairs) if m.shape[-1] == side]
        matrices, numbers = zip(*(pairs[i] for i in of_side))
        counts = [m.shape[0] for m in matrices]
        result = function(tf.concat(matrices, 0), tf.concat(numbers, 0))
        several = isinstance(result, tuple)
        parts = [tf.split(r, counts) for r in (result if several else [result])]
        for i, *values in zip(of_side, *parts):
            found[i] = tuple(values) if several else values[0]
    return found


def eigendecomposition(
    matrix: tf.Tensor, tolerance: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns (d, Q) with M = Q diag(d) Q^T, d >= 0.

    d is [groups, n], Q and M are [groups, n, n], tolerance is [groups]. d is
    NaN where M is not finite (the decomposition itself would raise) or has
    eigenvalues below -tolerance and beyond rounding; others below 0 become 0.
    """
    d, Q = _EIGENDECOMPOSITION[matrix.dtype](matrix, tolerance)
    d.set_shape(matrix.shape[:2])
    Q.set_shape(matrix.shape)
    return d, Q


def _eigendecomposition(matrix, tolerance):
    finite = tf.reduce_all(tf.math.is_finite(matrix), axis=[1, 2])
    finite = _of_each(finite, 2)
    sound = _of_each(finite, 3)
    d, Q = tf.linalg.eigh(tf.where(sound, matrix, _identity_like(matrix)))
    rounding = 1e-3 * tf.reduce_max(tf.abs(d), axis=-1, keepdims=True)
    least = tf.reduce_min(d, axis=-1, keepdims=True)
    negligible = tf.maximum(_of_each(tolerance, 2), rounding)
    semidefinite = least >= -negligible
    good = tf.logical_and(finite, semidefinite)
    return tf.where(good, tf.maximum(d, 0), float("nan")), Q


_EIGENDECOMPOSITION = traced_by_type(_eigendecomposition, [3, 1])


def pack_symmetric(matrix: tf.Tensor) -> tf.Tensor:
    """Returns the upper triangles, [groups, n (n + 1) / 2].

    The triangle is folded: its row i and the one as far from the end share a
    row of the result, so that no indices are needed.

    Args:
        matrix: [groups, n, n], symmetric.
    """
    n = matrix.shape[-1]
    even = 1 - n % 2
    half = (n + 1) // 2
    above = tf.pad(matrix[:, :half], [[0, 0], [0, 0], [even, 0]])
    turned = matrix[:, ::-1, ::-1][:, : half - 1 + even]
    below = tf.pad(turned, [[0, 0], [1 - even, 0], [0, even]])
    # Columns of row i from i + even on are of row i, those before of the other.
    upper = tf.linalg.band_part(above, 0, -1)
    lower = tf.linalg.band_part(below, -1, 0)
    zeros = tf.zeros([matrix.shape[0], half], matrix.dtype)
    if even:
        upper = tf.linalg.set_diag(upper, zeros)
    else:
        lower = tf.linalg.set_diag(lower, zeros)
    packed = upper + lower
    return tf.reshape(packed, [matrix.shape[0], n * (n + 1) // 2])


def unpack_symmetric(packed: tf.Tensor, n: int) -> tf.Tensor:
    """Undoes `pack_symmetric`; returns [groups, n, n]."""
    groups = packed.shape[0]
    even = 1 - n % 2
    half = (n + 1) // 2
    rows = tf.reshape(packed, [groups, half, n + even])
    turned = rows[:, 1 - even :, :n]
    upper = tf.concat([rows[:, :, even:], turned[:, ::-1, ::-1]], axis=1)
    # Below the diagonal lies what belongs to other rows.
    upper = tf.linalg.band_part(upper, 0, -1)
    strictly = tf.linalg.set_diag(upper, tf.zeros([groups, n], packed.dtype))
    return upper + tf.linalg.matrix_transpose(strictly)
