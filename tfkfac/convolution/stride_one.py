"""A convolution with any strides as one with stride 1.

Strides become channels: x[s p + r] is channel r, a phase, of a convolution with
stride 1.
"""

import itertools
import math

import numpy as np
import tensorflow as tf

from tfkfac.convolution.axis import Axis
from tfkfac.convolution.patches import Window


class StrideOneConvolution:
    """What a convolution is when its strides have become channels.

    Args:
        space: The spatial shape of the input.
        window: The convolution's.

    Attributes:
        axes: The axes of the image.
        phases: How many channels one channel has become.
    """

    def __init__(self, space: tuple[int, ...], window: Window):
        self._window, self._given = window, space
        self.phases = math.prod(window.strides)
        self.axes = []
        for i, n in enumerate(space):
            k, outputs = window.size[i], window.outputs(i, n)
            low = window.pads(i, n)[0]
            if self.phases > 1:
                k = (k - 1) // window.strides[i] + 1
                n, low = outputs + k - 1, 0
            self.axes.append(
                Axis(k, window.dilation[i], n, outputs, low, half=i == 0)
            )

    def with_phases(self, x: tf.Tensor) -> tf.Tensor:
        """Returns x as [batch, *space, phases, channels]."""
        if self.phases == 1:
            return x[..., tf.newaxis, :]
        strides = self._window.strides
        space = [axis.space for axis in self.axes]
        pads, kept = [(0, 0)], [slice(None)]
        for i, (n, s) in enumerate(zip(self._given, strides)):
            low = self._window.pads(i, n)[0]
            high = space[i] * s - low - n
            # It is negative where no kernel sees the end.
            pads.append((low, max(high, 0)))
            kept.append(slice(0, n + min(high, 0)))
        x = tf.pad(x[tuple(kept)], [*pads, (0, 0)])
        split = itertools.chain.from_iterable(zip(space, strides))
        x = tf.reshape(x, [-1, *split, x.shape[-1]])
        last = x.shape.rank - 1
        x = tf.transpose(x, [0, *range(1, last, 2), *range(2, last, 2), last])
        return tf.reshape(x, [-1, *space, self.phases, x.shape[-1]])

    def in_kernel_order(self, A: tf.Tensor) -> tf.Tensor:
        """Brings both sides of [groups, ., .] from (place, phase, c) to (o, c).

        Offset o of the kernel is place * stride + phase on each axis.
        """
        if self.phases == 1:
            return A
        strides = self._window.strides
        size = [axis.size for axis in self.axes]
        units = []
        for offset in itertools.product(*map(range, self._window.size)):
            place = tuple(o // s for o, s in zip(offset, strides))
            phase = tuple(o % s for o, s in zip(offset, strides))
            units.append(
                np.ravel_multi_index(place, size) * self.phases
                + np.ravel_multi_index(phase, strides)
            )
        c = A.shape[-1] // (math.prod(size) * self.phases)
        index = np.add.outer(np.array(units) * c, np.arange(c)).ravel()
        return tf.gather(tf.gather(A, index, axis=1), index, axis=2)
