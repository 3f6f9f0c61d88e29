"""Which method takes the second moment of patches, and what it costs."""

import math

import pytest
import tensorflow as tf

from tfkfac.convolution import autocorrelation, frequencies, method
from tfkfac.convolution.patches import Window
from tfkfac.convolution.stride_one import StrideOneConvolution
from tfkfac.planning import flops


def test_which_is_chosen():
    def chosen(space, size, channels=16, groups=1, **options):
        ones = (1,) * len(size)
        window = {"strides": ones, "dilation": ones, "padding": "same"}
        window = Window(size, **(window | options))
        found = method.choose(space, channels, groups, window, gpu=False)
        return found.name != "patches"

    assert chosen((32, 32), (3, 3))
    assert chosen((224, 224), (7, 7), 3, strides=(2, 2))
    assert chosen((32, 32), (3, 3), strides=(2, 2))
    assert not chosen((28, 28), (3, 3), 128, strides=(2, 2))
    assert not chosen((56, 56), (3, 3), 128, strides=(2, 2))
    assert chosen((32, 32), (3, 3), 16, 16)
    assert chosen((40,), (31,)) and not chosen((40,), (33,))
    assert not chosen((32, 32), (1, 1))
    assert not chosen((None, 32), (3, 3))
    assert not chosen((1, 5), (4, 3), dilation=(2, 1))
    assert not chosen((32, 32), (3, 3), 64, 32)  # Many groups of 2.


def flops_of_an_example(space, channels, window):
    """Counted in the graph, without what a batch takes once."""

    def of_batch(n):
        @tf.function
        def run():
            x = tf.ones([n, *space, channels])
            return autocorrelation.second_moment(x, window, 1)

        operations = run.get_concrete_function().graph.get_operations()
        multiplied, left_out = flops.count(operations)
        assert not left_out
        return multiplied

    return of_batch(30) - of_batch(29)


def test_multiplications():
    """Fewer than with patches by what is promised."""
    n, C, k = 16, 8, 3
    window = Window((k, k), (1, 1), (1, 1), "same")
    total = flops_of_an_example((n, n), C, window) / 2
    chosen = method.choose((n, n), C, 1, window, gpu=False)
    assert chosen.name == "convolution"
    assert 0.98 * chosen.cost < total <= chosen.cost
    assert n**2 * k * (2 * k - 1) * C**2 < total
    assert total < n**2 * k * (2 * k - 1) * C**2 + n * k**3 * C**2
    assert n**2 * k**4 * C**2 / total > 4


def test_multiplications_by_frequencies():
    n, C, k = 15, 128, 3
    window = Window((k, k), (1, 1), (1, 1), "same")
    total = flops_of_an_example((n, n), C, window) / 2
    axes = StrideOneConvolution((n, n), window).axes
    examples = method.examples_of_part((n, n, C))
    chosen = method.choose((n, n), C, 1, window, gpu=False)
    assert chosen.name == "frequencies"
    N, F = n + k - 1, (n + k - 1) // 2 + 1
    whole = 2 * F * n * n * C + 4 * F * N * n * C + 3 * F * N * C**2
    counted = frequencies.multiplications(axes, C, 1, examples)
    assert counted == whole + 2 * k * (2 * k - 1) * F * N * C**2 / examples
    borders = chosen.cost - method._COST_OF_FREQUENCIES * counted
    assert whole + 0.7 * borders < total <= whole + borders
    assert n**2 * k * (2 * k - 1) * C**2 / total > 4


def window(size, strides=1, dilation=1, padding="same"):
    rank = len(size)
    return Window(size, (strides,) * rank, (dilation,) * rank, padding)


def test_convolution_by_hand():
    # Offsets 0, 1, 2 of 10 positions, and one product at either end.
    line = method.choose((10,), 2, 1, window((3,)), gpu=False)
    assert line == method.Method("convolution", (10 * 3 + 2) * 2**2)
    # Offsets 0 to 2 by -2 to 2, with the two ends on each axis.
    plane = method.choose((4, 4), 1, 1, window((3, 3)), gpu=False)
    assert plane == method.Method("convolution", (4 * 3 + 2) * (4 * 5 + 2))


def test_channels_by_hand():
    """As many as of a convolution, for each of 16 channels."""
    found = method.choose((8, 8), 16, 16, window((3, 3)), gpu=False)
    assert found == method.Method("channels", 16 * 26 * 42)


WIDE = (14, 14), 256, 1, window((3, 3))


def test_frequencies_by_hand():
    """16 x 16 positions with zeros, of which 9 x 16 frequencies are taken.

    8 MiB hold 41 examples, which share the way back.
    """
    first = 2 * 9 * 14 * 14 * 256
    second = 4 * 9 * 16 * 14 * 256
    pairs = 9 * 16 * 256**2
    total = first + second + 3 * pairs + 2 * 15 * pairs / 41
    borders = (44 * 72 - 42 * 70) * 256**2
    found = method.choose(*WIDE, gpu=False)
    assert found.name == "frequencies"
    assert math.isclose(found.cost, borders + 2.3 * total)


def test_patches_by_hand():
    """14 x 14 patches of 9 x 128; four phases of 128 channels are dearer."""
    found = method.choose((28, 28), 128, 1, window((3, 3), 2), gpu=False)
    assert found == method.Method("patches", 14 * 14 * 1152 * (1152 + 220))


def test_no_frequencies_on_a_gpu():
    """A convolution of 42 x 70 products, and 44 x 72 with the borders."""
    found = method.choose(*WIDE, gpu=True)
    assert found == method.Method("convolution", 44 * 72 * 256**2)


@pytest.mark.parametrize(
    "examples, name", [(1, "convolution"), (5, "convolution"),
                       (6, "frequencies"), (41, "frequencies")]
)  # fmt: skip
def test_few_examples_take_a_convolution(examples, name):
    """42 x 70 K^2 products against 2.3 (477.3 + 30 x 144 / examples) K^2.

    K is 256; with 5 examples these are 3,085 and with 6 2,754 against 2,940.
    """
    space, channels, groups, of = WIDE
    convolution = StrideOneConvolution(space, of)
    found = method.without_patches(
        convolution, channels, groups, gpu=False, examples=examples
    )
    assert found.name == name


def test_without_a_size_nothing_is_compared():
    assert method.choose((None, 9), 2, 1, window((3, 3)), gpu=False) == (
        method.Method("patches")
    )


def test_what_some_size_takes():
    def possible(channels, groups, of, gpu=False):
        return method.possible(channels, groups, of, gpu=gpu)

    three = ["patches", "convolution", "frequencies"]
    assert possible(4, 1, window((3, 3))) == three
    assert possible(4, 1, window((3, 3)), gpu=True) == three[:2]
    assert possible(4, 1, window((3,))) == three[:2]
    assert possible(4, 4, window((3, 3))) == ["patches", "channels"]
    assert possible(64, 32, window((3, 3))) == ["patches"]
    assert possible(4, 1, window((1, 1))) == ["patches"]
    assert possible(4, 1, window((3, 33))) == ["patches"]


def test_examples_of_a_part():
    """8 MiB: 32 images of 256 KiB; one image where it is larger."""
    assert method.examples_of_part((32, 32, 64)) == 32
    assert method.examples_of_part((32, 32, 64), 8) == 16
    assert method.examples_of_part((224, 224, 64)) == 1


def test_patches_where_an_offset_sees_little_of_the_image():
    """2 of 4 positions on both axes, but 1 of 3."""
    ones = window((3, 3), padding="valid")
    assert method.choose((4, 4), 1, 1, ones, gpu=False).name == "convolution"
    assert method.choose((3, 3), 1, 1, ones, gpu=False).name == "patches"
    sparse = window((3, 3), dilation=4)
    assert method.choose((9, 9), 1, 1, sparse, gpu=False).name == "convolution"
    # Here 4 of 10 positions, and patches would take longer.
    sparse = window((7, 7), padding="valid")
    assert method.choose((10, 10), 1, 1, sparse, gpu=False).name == "patches"


def test_what_is_rounded():
    """A channel of which an offset sees less than a 32nd; none at all is 0."""
    whole = tf.constant([[64.0, 0.0]])

    def seen(least):
        return tf.constant([[[64.0, 0.0], [least, 0.0]]])

    assert not method.is_rounded(whole, seen(2.0))
    assert method.is_rounded(whole, seen(1.9))
    assert method.is_rounded(whole, seen(-1e-3))
    assert not method.is_rounded(whole, seen(math.nan))
