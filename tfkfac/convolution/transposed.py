"""A transposed convolution as convolutions of its input with stride 1.

On one axis, tap k of the kernel takes input p to output position

    o = p s + k d - low

for stride s, dilation d, and `low` outputs that the padding cuts off before the
first. So output position o sees, through tap k, the input (o + low - k d) / s
where that is a whole number, and nothing else. Taps meet at an output position
only if their residues of k modulo s are equal: each residue is a phase, and

    phase r:  taps r, r + s, ...;  output positions s t + r - low

see, at t, the inputs t, t - 1, ... (for s = 1: t, t - d, ...). This is what a
convolution with stride 1 sees whose kernel are the taps in reversed order.
Strides and dilation are not both greater than 1, as in Keras.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfkfac import linalg
from tfkfac.convolution.patches import Window


@dataclasses.dataclass(frozen=True)
class _AxisPhase:
    """A phase on one axis: its taps, as a window sees them, and the padding."""

    taps: tuple[int, ...]
    pads: tuple[int, int]


class TransposedConvolution:
    """The phases of a transposed convolution.

    Args:
        size, strides, dilation: Of the kernel, one number for each axis.
        padding: "valid" or "same", as Keras crops.
        output_padding: How much longer the output is, or None for Keras'
            default.

    Attributes:
        windows: For each phase that has taps, what its outputs see.
        taps: For each of them the numbers of its taps, row-major in the kernel,
            in the order of the window.
    """

    def __init__(
        self,
        size: Sequence[int],
        strides: Sequence[int],
        dilation: Sequence[int],
        padding: str,
        output_padding: Sequence[int] | None,
    ):
        self._strides, self._rest = tuple(strides), []
        axes = []
        for i, axis in enumerate(zip(size, strides, dilation)):
            more = None if output_padding is None else output_padding[i]
            rest, low = _ends(*axis, padding, more)
            self._rest.append(rest)
            axes.append(_axis_phases(*axis, rest, low))
        ones = (1,) * len(axes)
        self.windows: list[Window] = []
        self.taps: list[list[int]] = []
        for phase in itertools.product(*axes):
            taps = [of_axis.taps for of_axis in phase]
            self.windows.append(
                Window(
                    tuple(map(len, taps)),
                    ones,
                    tuple(dilation),
                    tuple(of_axis.pads for of_axis in phase),
                )
            )
            places = itertools.product(*taps)
            self.taps.append(
                [int(np.ravel_multi_index(k, size)) for k in places]
            )

    def outputs(self, axis: int, n):
        """Returns the number of output positions for `n` inputs."""
        return (n - 1) * self._strides[axis] + self._rest[axis]

    def join(self, moments: Sequence[tf.Tensor], channels: int) -> tf.Tensor:
        """Returns the second moment of the whole rows for those of the phases.

        Args:
            moments: For each phase [1, side, side], or [1, side] of diagonals,
                by (tap, channel); with a 1 at the end of the rows or without.
            channels: The number of channels of the input.

        Returns:
            The same for all taps in kernel order; elements of two phases are 0.
        """
        sides = [len(taps) * channels for taps in self.taps]
        phases = list(zip(moments, sides))
        first, side = phases[0]
        if first.shape.rank == 2:
            squares = tf.concat([S[:, :n] for S, n in phases], axis=1)
            squares = self._in_kernel_order(squares, channels)
            return tf.concat([squares, first[:, side:]], axis=1)
        blocks = [S[:, :n, :n] for S, n in phases]
        A = self._in_kernel_order(_block_diagonal(blocks), channels)
        if first.shape[-1] == side:
            return A
        sums = tf.concat([S[:, :n, n] for S, n in phases], axis=1)
        sums = self._in_kernel_order(sums, channels)
        return linalg.append_sums(A, sums, first[0, -1, -1])

    def _in_kernel_order(self, x: tf.Tensor, channels: int) -> tf.Tensor:
        """Brings all sides of [1, ...] from (phase, tap) to the kernel's."""
        order = np.argsort(np.concatenate(self.taps))
        sides = [(side // channels, channels) for side in x.shape[1:]]
        found = tf.reshape(x, [1, *itertools.chain(*sides)])
        for axis in range(1, found.shape.rank, 2):
            found = tf.gather(found, order, axis=axis)
        return tf.reshape(found, x.shape)


def _block_diagonal(blocks: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns [1, sum of sides, sum of sides] for blocks [1, side, side]."""
    total, before, rows = sum(S.shape[1] for S in blocks), 0, []
    for S in blocks:
        after = total - before - S.shape[1]
        rows.append(tf.pad(S, [(0, 0), (0, 0), (before, after)]))
        before += S.shape[1]
    return tf.concat(rows, axis=1)


def _ends(size, stride, dilation, padding, output_padding) -> tuple[int, int]:
    """Returns (the outputs of an axis beyond (n - 1) stride, `low`).

    The number of outputs is Keras', what is cut off before them TensorFlow's:
    as much as it pads the convolution that is transposed.
    """
    extent = (size - 1) * dilation + 1
    if padding == "valid":
        more = max(stride - extent, 0)
        return extent + (more if output_padding is None else output_padding), 0
    rest = stride if output_padding is None else extent % 2 + output_padding
    return rest, max(extent - rest, 0) // 2


def _axis_phases(size, stride, dilation, rest, low) -> list[_AxisPhase]:
    """Returns the phases of an axis that have taps."""
    found = []
    for r in range(min(stride, size)):
        taps = tuple(reversed(range(r, size, stride)))
        first = math.ceil((low - r) / stride)  # The least t.
        last = (rest - 1 + low - r) // stride  # The largest, less n - 1.
        reach = (len(taps) - 1) * dilation
        found.append(_AxisPhase(taps, (reach - first, last)))
    return found
