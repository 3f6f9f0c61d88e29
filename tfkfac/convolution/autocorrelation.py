"""The second moment of convolution patches, without building the patches.

With x the zero-padded input, p the output positions and o, o' offsets in the
kernel, the blocks of the moment are, for stride 1,

    A[o', o] = sum_p x[p + o'] x[p + o]^T = sum_(q in box(o)) x[q + D] x[q]^T

with D = o' - o and box(o) the output positions moved by o. But for the borders
of the box this depends on D alone: the sum over all q is the autocorrelation of
x. A box is all q but those outside on an axis, so that, over n axes,

    sum_(q in box) = prod_(axes) (all q_a - q_a outside)

is 2^n sums of which all but the first are of few rows and columns.

What is subtracted has been rounded: each element has an error relative to the
sums of squares over the whole image, where patches have one relative to what
the two offsets see. The two are alike but for channels that are large at a
border alone, as with one bright pixel in a corner. These are told by the
diagonal, and then patches are built.

D and -D give transposed blocks, so that half of the plane is enough. Other
strides become channels (`tfkfac.convolution.stride_one`).
"""

import functools
import math

import tensorflow as tf

from tfkfac.convolution import method, patches
from tfkfac.convolution.axis import Axis
from tfkfac.convolution.correlation import correlations
from tfkfac.convolution.patches import Window
from tfkfac.convolution.stride_one import StrideOneConvolution
from tfkfac.tracing import rarely, traced_once


def second_moment(x: tf.Tensor, window: Window, groups: int) -> tf.Tensor:
    """Returns the sum over all patches of a a^T.

    Args:
        x: [batch, *space, channels], float32 or float64, the space known.
        window, groups: The convolution's.

    Returns:
        [groups, prod(size) c, prod(size) c], symmetric, c the channels of a
        group; in kernel order.
    """
    convolution = StrideOneConvolution(tuple(x.shape[1:-1]), window)
    axes = convolution.axes
    E = _of_parts(x, convolution, groups)
    whole = E[tuple(axis.offsets.index(0) for axis in axes)]
    for i in reversed(range(len(axes))):
        E = _join(E, i, axes[i])
    A = E + tf.linalg.matrix_transpose(E)
    unless_rounded = _unless_rounded(window, groups, x.dtype)
    found = unless_rounded(convolution.in_kernel_order(A), A, whole, x)
    side = math.prod(window.size) * x.shape[-1] // groups
    found.set_shape([groups, side, side])
    return found


@functools.cache
def _unless_rounded(window, groups, dtype):
    """Returns the function of x and its moment that corrects the moment.

    One for all shapes: patches are seldom built, and every first step traces
    how.
    """

    def unless_rounded(found, A, whole, x):
        """Returns `found`, or the moment of patches where it is rounded.

        Args:
            found: The moment, [groups, side, side].
            A: The same, by (place, phase, c).
            whole: sum_q x[q] x[q]^T, [groups, K, K].
            x: [batch, *space, channels].
        """
        whole = tf.linalg.diag_part(whole)
        seen = tf.linalg.diag_part(A)
        seen = tf.reshape(seen, [groups, -1, tf.shape(whole)[-1]])
        return rarely(
            method.is_rounded(whole, seen),
            lambda: patches.second_moment(x, window, groups),
            found,
        )

    ranks = 3, 3, 3, len(window.size) + 2
    return traced_once(
        unless_rounded, [tf.TensorSpec([None] * rank, dtype) for rank in ranks]
    )


def _of_parts(x, convolution, groups):
    """Returns the correlations, by parts of the batch of 8 MiB.

    They are taken one after the other, so that the memory that it takes does
    not grow with the batch.
    """
    size = method.examples_of_part(x.shape[1:], x.dtype.size)
    batch = x.shape[0]
    if batch is not None and batch <= size:
        return _of_part(x, convolution, groups)
    if batch is None:
        parts, rest = (tf.shape(x)[0] + size - 1) // size, 0
    else:
        parts, rest = divmod(batch, size)

    def add(i, total):
        begin = i * size
        if batch is None:
            part = x[begin : begin + size]
        else:  # All of one size, which XLA needs to know.
            at = [begin, *[0] * (x.shape.rank - 1)]
            part = tf.slice(x, at, [size, *x.shape[1:]])
        return i + 1, total + _of_part(part, convolution, groups)

    K = convolution.phases * x.shape[-1] // groups
    terms = [len(axis.offsets) + len(axis.borders) for axis in convolution.axes]
    _, total = tf.while_loop(
        lambda i, _: i < parts,
        add,
        (0, tf.zeros([*terms, groups, K, K], x.dtype)),
        parallel_iterations=1,
        maximum_iterations=None if batch is None else parts,
    )
    if rest:
        total += _of_part(x[-rest:], convolution, groups)
    return total


def _of_part(x, convolution, groups):
    channels, x = x.shape[-1], convolution.with_phases(x)
    examples = x.shape[0]
    if not examples:  # Not known, or none.
        examples = method.examples_of_part(x.shape[1:], x.dtype.size)
    chosen = method.without_patches(
        convolution, channels, groups, gpu=method.has_gpu(), examples=examples
    )
    return correlations(x, convolution.axes, groups, chosen)


def _join(E: tf.Tensor, i: int, axis: Axis) -> tf.Tensor:
    """Turns sums by offsets D into those of pairs (o', o) within their boxes.

    Args:
        E: [*(D and borders on the axes before), D and borders, groups, K, K].
        i: Which axis; those after it are of pairs by now.
        axis: It.

    Returns:
        [*(D and borders on the axes before), groups, size K, size K]; with the
        first axis half of the sum, such that its transpose is the rest.
    """
    *before, _, groups, K, _ = E.shape
    flat = tf.reshape(E, [*before, -1, groups * K * K])
    k = axis.size
    weights = axis.weights().reshape(k * k, -1)
    E = tf.matmul(tf.constant(weights, E.dtype), flat)
    E = tf.reshape(E, [-1, k, k, groups, K, K])
    E = tf.transpose(E, [0, 3, 1, 4, 2, 5])
    return tf.reshape(E, [*before, groups, k * K, k * K])
