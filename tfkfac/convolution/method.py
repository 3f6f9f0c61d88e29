"""How the second moment of a convolution's patches is taken.

All four methods give the same moment. For an example of n x n positions with C
channels and a k x k kernel in G groups, with stride 1 and "same" padding, they
take these multiplications:

    patches        n^2 k^4 C^2 / G, and all patches are written and read
    convolution    n^2 k (2 k - 1) C^2 / G
    channels       the same as a convolution, where each group has one channel
    frequencies    about 3 n^2 C^2 / (2 G) + 3 n^3 C (`convolution.frequencies`)

The last three take the autocorrelation of the input, and the sums at its
borders, which are O(n k^3) C^2 / G more (`convolution.autocorrelation`). Where
that would round away what an offset of the kernel sees, at run time, patches
are taken in their place.
"""

import dataclasses
import math
from collections.abc import Sequence

import tensorflow as tf

from tfkfac.convolution import frequencies
from tfkfac.convolution.axis import Axis
from tfkfac.convolution.patches import Window
from tfkfac.convolution.stride_one import StrideOneConvolution

# To write and read an element of the patches takes as long as this many
# multiplications: measured on CPUs with 3 x 3 kernels, strides 1 and 2.
_COST_OF_PATCHES = 220
# A multiplication by frequencies takes as long as this many of a convolution:
# measured on CPUs, 2.0 to 2.6 with 32 to 256 channels.
_COST_OF_FREQUENCIES = 2.3
_MOST_GROUPS = 16  # Each is a convolution, unless it has one channel.
_LARGEST_SIZE = 32  # Of a kernel: the weights of its borders grow with size^4.
# Of the whole image beside what an offset of the kernel sees, at most: the
# rounding errors are those of sums over the whole.
_LARGEST_SHARE = 4  # In positions, where the autocorrelation is chosen.
_LARGEST_ENERGY = 32  # In squares of a channel, where it is kept.
_PART = 2**23  # Bytes of an input that are taken at a time.


@dataclasses.dataclass(frozen=True)
class Method:
    """One of the four ways to the second moment.

    Attributes:
        name: "patches", "channels", "convolution" or "frequencies".
        cost: The time that an example takes, as the number of multiplications
            of a convolution that take as long; None where it was not compared.
    """

    name: str
    cost: float | None = None


def choose(
    space: Sequence[int | None],
    channels: int,
    groups: int,
    window: Window,
    *,
    gpu: bool,
) -> Method:
    """Returns the method that takes the least time.

    The number of examples is that of a part of a large batch.

    Args:
        space: The spatial shape of the input, None where it is not known.
        channels: The number of channels of the input.
        groups: The number of groups of the convolution.
        window: The convolution's.
        gpu: Whether there is a GPU.
    """
    sides = [n for n in space if n is not None]
    is_known = len(sides) == len(space)
    if not is_known or not _may_be_without_patches(channels, groups, window):
        return Method("patches")
    if any(n < window.extent(i) for i, n in enumerate(sides)):
        return Method("patches")  # All is border: rounding is left of nothing.
    positions = math.prod(window.outputs(i, n) for i, n in enumerate(sides))
    side = math.prod(window.size) * channels // groups
    patches = positions * groups * side * (side + _COST_OF_PATCHES)
    convolution = StrideOneConvolution(tuple(sides), window)
    least = math.prod(axis.least for axis in convolution.axes)
    whole = math.prod(axis.space for axis in convolution.axes)
    if whole > _LARGEST_SHARE * least:
        return Method("patches")
    examples = examples_of_part([*sides, channels])
    found = without_patches(
        convolution, channels, groups, gpu=gpu, examples=examples
    )
    return found if found.cost < patches else Method("patches", patches)


def without_patches(
    convolution: StrideOneConvolution,
    channels: int,
    groups: int,
    *,
    gpu: bool,
    examples: int,
) -> Method:
    """Returns the method that takes the least time, patches left out.

    Args:
        convolution: The convolution, for the size of its input.
        channels, groups, gpu: As for `choose`.
        examples: How many examples are taken at a time.
    """
    axes, K = convolution.axes, convolution.phases * channels // groups
    inside = _inside(axes, K, groups)
    by_frequencies = math.inf
    if _may_take_frequencies(len(axes), gpu):
        by_frequencies = _COST_OF_FREQUENCIES * frequencies.multiplications(
            axes, K, groups, examples
        )
    if 1 < groups == channels:
        name = "channels"
    else:
        name = "frequencies" if by_frequencies < inside else "convolution"
    cost = _at_borders(axes, K, groups) + min(inside, by_frequencies)
    return Method(name, cost)


def possible(
    channels: int, groups: int, window: Window, *, gpu: bool
) -> list[str]:
    """Returns the names of the methods that some size of the input has.

    Args:
        channels, groups, window, gpu: As for `choose`.
    """
    if not _may_be_without_patches(channels, groups, window):
        return ["patches"]
    if 1 < groups == channels:
        return ["patches", "channels"]
    if not _may_take_frequencies(len(window.size), gpu):
        return ["patches", "convolution"]
    return ["patches", "convolution", "frequencies"]


def examples_of_part(sides: Sequence[int], bytes_of_element: int = 4) -> int:
    """Returns how many examples of these sides are taken at a time."""
    return max(1, _PART // (math.prod(sides) * bytes_of_element))


def is_rounded(whole: tf.Tensor, seen: tf.Tensor) -> tf.Tensor:
    """Whether the autocorrelation rounds what some offset sees too much.

    A moment by the autocorrelation has the rounding error of sums of squares
    over the whole image. That is far above what an offset sees where most of a
    channel lies at a border that the offset does not see.

    Args:
        whole: The sum of squares of each channel, [groups, K].
        seen: Those that each offset sees, [groups, offsets, K].
    """
    limit = _LARGEST_ENERGY * seen
    return tf.reduce_any(whole[:, tf.newaxis] > limit)


def has_gpu() -> bool:
    """Whether TensorFlow has a GPU in this process."""
    return bool(tf.config.list_logical_devices("GPU"))


def _may_be_without_patches(channels, groups, window):
    if math.prod(window.size) == 1:
        return False
    if _MOST_GROUPS < groups < channels or max(window.size) > _LARGEST_SIZE:
        return False
    return max(window.strides) == 1 or max(window.dilation) == 1


def _may_take_frequencies(rank, gpu):
    """Whether frequencies are for images of this rank on this device.

    GPUs round what they multiply, and what rounds frequencies alone, and not
    the sums at borders, would leave no second moment.
    """
    return rank == 2 and not gpu


def _inside(axes: Sequence[Axis], K: int, groups: int) -> int:
    """Returns the multiplications of a convolution, the borders left out."""
    positions = math.prod(x.space for x in axes)
    offsets = math.prod(len(x.offsets) for x in axes)
    return positions * offsets * groups * K**2


def _at_borders(axes: Sequence[Axis], K: int, groups: int) -> int:
    """Returns the multiplications of the sums at borders, at most."""
    both = [x.space * len(x.offsets) + len(x.borders) for x in axes]
    return math.prod(both) * groups * K**2 - _inside(axes, K, groups)
