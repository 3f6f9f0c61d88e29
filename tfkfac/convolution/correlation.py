"""Products of an image's channels with themselves, some way apart.

For an image x of K channels and an offset D in positions

    E(D) = sum_q x[q + D] x[q]^T                                     [K, K]

over the positions q of all examples or, on some axes, those at a border alone.
The sum over all q is taken by one of three methods (`convolution.method`): by a
convolution of x with itself, channel by channel where a group has one channel,
or by frequencies (`convolution.frequencies`).
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfkfac.convolution import frequencies
from tfkfac.convolution.axis import Axis
from tfkfac.convolution.method import Method


def correlations(
    x: tf.Tensor,
    axes: Sequence[Axis],
    groups: int,
    method: Method,
    at: tuple[bool, ...] = (),
) -> tf.Tensor:
    """Returns the sums over all positions and over those at borders.

    Args:
        x: [batch, *space, phases, channels], float32 or float64.
        axes: Of the space.
        groups: Channels of different groups are not multiplied.
        method: What takes the sums over all positions; not "patches".
        at: On the first axes, whether to look at the borders alone.

    Returns:
        [*(all D, then all borders, on each axis), groups, K, K], K the channels
        of a group in all phases. Axes of which `at` tells have only the one.
    """
    if len(at) == len(axes):
        if any(at):
            i = _transposed(axes, at)
            if i is not None:
                return _half_at_borders(x, axes, groups, at, i)
            return _at_borders(x, axes, groups, at)
        return _EVERYWHERE[method.name](x, axes, groups)
    found = correlations(x, axes, groups, method, (*at, False))
    if not axes[len(at)].borders:
        return found
    borders = correlations(x, axes, groups, method, (*at, True))
    return tf.concat([found, borders], axis=len(at))


def _at_borders(x, axes, groups, at):
    """By products: of patches, on the other axes."""
    n, channels = len(axes), x.shape[-1]
    K = x.shape[-2] * channels // groups
    y = x = tf.reshape(x, [-1, *x.shape[1:-1], groups, channels // groups])
    here = [i for i in range(n) if at[i]]
    free = [i for i in range(n) if not at[i]]
    for i in here:
        q, D = np.array(axes[i].borders).T
        y = tf.gather(y, q, axis=i + 1)
        x = tf.gather(x, q + D * axes[i].dilation, axis=i + 1)
    # Of [batch, *space, phases, groups, channels of a group].
    order = [*(i + 1 for i in here), n + 2, 0, *(i + 1 for i in free)]
    x, y = (tf.transpose(v, [*order, n + 1, n + 3]) for v in (x, y))
    x = _views(x, len(here) + 2, [axes[i] for i in free])
    count = [len(axes[i].borders) for i in here]
    offsets = [len(axes[i].offsets) for i in free]
    x = tf.reshape(x, [*count, groups, -1, math.prod(offsets) * K])
    y = tf.reshape(y, [*count, groups, -1, K])
    E = tf.matmul(x, y, transpose_a=True)
    E = tf.reshape(E, [*count, groups, *offsets, K, K])
    of_axis = dict(zip(here, itertools.count()))
    of_axis |= dict(zip(free, itertools.count(len(here) + 1)))
    order = [*(of_axis[i] for i in range(n)), len(here), n + 1, n + 2]
    return tf.transpose(E, order)


def _transposed(axes, at):
    """Returns an axis on which D and -D give transposed sums, or None.

    The borders are apart from themselves alone, and stand for both halves of
    the plane.
    """
    borders = [axis.borders for axis, here in zip(axes, at) if here]
    if not at[0] or all(at) or any(D for _, D in itertools.chain(*borders)):
        return None
    return at.index(False)


def _half_at_borders(x, axes, groups, at, i):
    """As `_at_borders`; on axis i that of D stands for -D too, which has 0."""
    half = dataclasses.replace(axes[i], half=True)
    E = _at_borders(x, [*axes[:i], half, *axes[i + 1 :]], groups, at)
    shape = [-1, *[1] * (E.shape.rank - i - 1)]
    weights = [1.0] + [2.0] * (axes[i].size - 1)
    E *= tf.reshape(tf.constant(weights, E.dtype), shape)
    pads = [(0, 0)] * E.shape.rank
    pads[i] = axes[i].size - 1, 0
    return tf.pad(E, pads)


def _views(x, first, axes):
    """Returns x moved by all D on axes of the space, of which `first` is one.

    Args:
        x: [..., *space, phases, channels].

    Returns:
        [..., *space, *offsets, phases, channels].
    """
    x = _pad(x, first, axes)
    for i, axis in reversed(list(enumerate(axes, first))):
        D = np.arange(len(axis.offsets)) * axis.dilation
        x = tf.gather(x, np.add.outer(np.arange(axis.space), D), axis=i)
    last = x.shape.rank - 2
    order = [*range(first, last, 2), *range(first + 1, last, 2)]
    return tf.transpose(x, [*range(first), *order, last, last + 1])


def _pad(x, first, axes):
    """Pads x with zeros for all D on axes of the space, from `first` on."""
    pads = [(0, 0)] * x.shape.rank
    for i, axis in enumerate(axes, first):
        D, d = axis.offsets, axis.dilation
        pads[i] = (-D[0] * d, D[-1] * d)
    return tf.pad(x, pads) if any(map(any, pads)) else x


def _by_channel(x, axes, groups):
    """Each group has one channel, in all its phases."""
    del groups
    y, x = x, _pad(x, 1, axes)
    found = []
    for D in itertools.product(*(range(len(axis.offsets)) for axis in axes)):
        begins = [d * axis.dilation for d, axis in zip(D, axes)]
        at = [slice(o, o + axis.space) for o, axis in zip(begins, axes)]
        moved = x[(slice(None), *at)]
        product = moved[..., :, tf.newaxis, :] * y[..., tf.newaxis, :, :]
        found.append(tf.reduce_sum(product, axis=range(len(axes) + 1)))
    by_channel = tf.transpose(tf.stack(found), [0, 3, 1, 2])
    offsets = [len(axis.offsets) for axis in axes]
    return tf.reshape(by_channel, [*offsets, *by_channel.shape[1:]])


def _by_convolution(x, axes, groups):
    y, x = x, _pad(x, 1, axes)
    dilation = [axis.dilation for axis in axes]
    if max(dilation) > 1:  # The residues of the positions become examples.
        rest = [(0, -n % d) for n, d in zip(y.shape[1:], dilation)]
        y, x = (tf.space_to_batch(v, dilation, rest) for v in (y, x))
    offsets = [len(axis.offsets) for axis in axes]
    found = []
    for y_, x_ in zip(tf.split(y, groups, -1), tf.split(x, groups, -1)):
        K = y_.shape[-1] * y_.shape[-2]
        y_, x_ = (tf.reshape(v, [-1, *v.shape[1:-2], K]) for v in (y_, x_))
        found.append(_convolve(y_, x_, [*offsets, K, K]))
    return tf.stack(found, axis=len(axes))


def _convolve(y, x, shape):
    """Returns sum_q x[q + D] y[q]^T for all D >= 0, of this shape."""
    if len(shape) == 3:
        y, x = y[:, :, tf.newaxis], x[:, :, tf.newaxis]
        wide = _convolve(y, x, [shape[0], 1, *shape[1:]])
        return tf.squeeze(wide, axis=1)
    name = {4: "Conv2DBackpropFilter", 5: "Conv3DBackpropFilterV2"}
    return getattr(tf.raw_ops, name[len(shape)])(
        input=x,
        filter_sizes=shape,
        out_backprop=y,
        strides=[1] * len(shape),
        padding="VALID",
    )


_EVERYWHERE = {
    "channels": _by_channel,
    "convolution": _by_convolution,
    "frequencies": frequencies.correlations,
}
