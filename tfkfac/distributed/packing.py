"""Tensors as one vector: what the ranks send each other."""

from collections.abc import Iterable, Sequence

import tensorflow as tf

from tfkfac import linalg
from tfkfac.blocks import Moment


def widest(dtypes: Iterable) -> tf.DType:
    """Returns float64 if it is among the types, else float32."""
    return tf.float64 if tf.float64 in set(dtypes) else tf.float32


def flatten(tensors: Sequence[tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    """Returns the elements of all tensors as one vector."""
    flat = [tf.reshape(tf.cast(t, dtype), [-1]) for t in tensors]
    return tf.concat(flat, axis=0) if flat else tf.zeros([0], dtype)


def unflatten(vector: tf.Tensor, templates: Iterable) -> list[tf.Tensor]:
    """Undoes `flatten`, for tensors shaped as `templates`."""
    shapes = [t.shape for t in templates]
    if not shapes:
        return []
    parts = tf.split(vector, [s.num_elements() for s in shapes])
    return [tf.reshape(part, s) for part, s in zip(parts, shapes)]


def flatten_moments(moments: Sequence[Moment], count: tf.Tensor) -> tf.Tensor:
    """Returns N, all R and the upper triangles of all sums as one vector.

    Args:
        moments: The moments.
        count: N.
    """
    dtype = widest([count.dtype, *(m.total.dtype for m in moments)])
    rows = [m.rows for m in moments]
    return flatten([count, *rows, *map(_packed, moments)], dtype)


def unflatten_moments(
    vector: tf.Tensor, templates: Sequence[Moment]
) -> tuple[list[Moment], tf.Tensor]:
    """Undoes `flatten_moments`.

    Args:
        vector: Its result, or a sum of such.
        templates: Moments of the same shapes and types.

    Returns:
        (moments, N in the type of `vector`).
    """
    rows = [m.rows for m in templates]
    values = unflatten(vector[1:], rows + [_packed(m) for m in templates])
    moments = [
        Moment(_unpacked(value, m.total), count)
        for m, count, value in zip(templates, values, values[len(rows) :])
    ]
    return moments, vector[0]


def flatten_half(moments: Sequence[Moment], count: tf.Tensor) -> tf.Tensor:
    """As `flatten_moments`, in float16 but for N and R.

    Each moment is divided by its largest element, so that nothing overflows;
    these go along, in float32 as pairs of float16.
    """
    packed = [tf.cast(_packed(m), tf.float32) for m in moments]
    scales = [tf.reduce_max(tf.abs(p)) for p in packed]
    scales = [tf.where(s > 0, s, 1) for s in scales]
    head = [count, *(m.rows for m in moments), *scales]
    head = tf.stack([tf.cast(x, tf.float32) for x in head])
    head = tf.reshape(tf.bitcast(head, tf.float16), [-1])
    halves = [tf.cast(p / s, tf.float16) for p, s in zip(packed, scales)]
    return tf.concat([head, *halves], axis=0)


def sum_half(received: tf.Tensor, templates: Sequence[Moment]) -> tf.Tensor:
    """Returns what `flatten_moments` would, summed over the ranks in float32.

    Args:
        received: [ranks, length], what `flatten_half` gave on each.
        templates: Moments of the same shapes.
    """
    lengths = [_packed(m).shape[0] for m in templates]
    k = len(lengths)
    split = 2 * (1 + 2 * k)
    head = tf.reshape(received[:, :split], [-1, 1 + 2 * k, 2])
    head = tf.bitcast(head, tf.float32)
    parts = tf.split(received[:, split:], lengths, 1) if lengths else []
    sums = [
        tf.cast(part, tf.float32) * head[:, 1 + k + i, tf.newaxis]
        for i, part in enumerate(parts)
    ]
    return tf.reduce_sum(tf.concat([head[:, : 1 + k], *sums], 1), axis=0)


def _packed(moment: Moment) -> tf.Tensor:
    """Returns what is sent of a moment, as a vector."""
    total = moment.total
    if total.shape.rank == 3:
        total = linalg.pack_symmetric(total)
    return tf.reshape(total, [total.shape.num_elements()])


def _unpacked(vector: tf.Tensor, template: tf.Tensor) -> tf.Tensor:
    """Undoes `_packed`, for a moment shaped as `template`."""
    groups = template.shape[0]
    vector = tf.cast(vector, template.dtype)
    if template.shape.rank == 3:
        packed = tf.reshape(vector, [groups, -1])
        return linalg.unpack_symmetric(packed, template.shape[1])
    return tf.reshape(vector, template.shape)
