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
        diagonal = moments[0].shape.rank == 2
        joined = (_join_diagonals if diagonal else _join)(moments, sides)
        units = np.concatenate(self.taps)
        index = np.add.outer(units * channels, np.arange(channels)).ravel()
        ends = range(len(index), joined.shape[-1])  # The 1, if there is one.
        places = np.argsort([*index, *ends])
        for axis in range(1, joined.shape.rank):
            joined = tf.gather(joined, places, axis=axis)
        return joined


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
        first = math.ceil((low - r) / stride)  # The least t,
        last = (rest - 1 + low - r) // stride  # and the largest from n - 1 on.
        reach = (len(taps) - 1) * dilation
        found.append(_AxisPhase(taps, (reach - first, last)))
    return found


def _join(moments, sides):
    """Returns the blocks on a diagonal; the sums beside a 1 go on beside it."""
    rows, total, before = [], sum(sides), 0
    for S, side in zip(moments, sides):
        after = total - before - side
        row = tf.pad(S[:, :side, :side], [(0, 0), (0, 0), (before, after)])
        rows.append(tf.concat([row, S[:, :side, side:]], axis=2))
        before += side
    joined = tf.concat(rows, axis=1)
    if joined.shape[2] == total:
        return joined
    last = tf.linalg.matrix_transpose(joined[:, :, total:])
    corner = moments[0][:, -1:, -1:]
    return tf.concat([joined, tf.concat([last, corner], axis=2)], axis=1)


def _join_diagonals(moments, sides):
    parts = [S[:, :side] for S, side in zip(moments, sides)]
    return tf.concat([*parts, moments[0][:, sides[0] :]], axis=1)
