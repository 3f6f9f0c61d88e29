"""Blocks of convolutions."""

import math

import tensorflow as tf

from tfkfac import patches
from tfkfac.blocks.dense import _unsupported_variant
from tfkfac.blocks.kronecker import KroneckerBlock


class ConvolutionBlock(KroneckerBlock):
    """`keras.layers.Conv1D`, `Conv2D` and `Conv3D` (Grosse and Martens 2016).

    The rows are the patches of all output positions; each group of channels
    has its own factors.
    """

    def __init__(self, layer):
        *window, c_in, c_out = layer.kernel.shape
        super().__init__(
            layer,
            layer.kernel,
            layer.bias,
            groups=layer.groups,
            d_in=math.prod(window) * c_in,
            d_out=c_out // layer.groups,
        )

    @classmethod
    def unsupported(cls, layer):
        return _unsupported_variant(layer)

    def _channels_last(self, x):
        if self.layer.data_format == "channels_last":
            return x
        space = range(2, x.shape.rank)
        return tf.transpose(x, [0, *space, 1])

    def input_rows(self, inputs):
        layer = self.layer
        x = patches.extract(
            self._channels_last(inputs),
            layer.kernel_size,
            layer.strides,
            layer.padding,
            layer.dilation_rate,
        )
        return patches.group_rows(x, self.groups)

    def output_rows(self, outputs):
        g = self._channels_last(outputs)
        g = tf.reshape(g, [-1, 1, self.groups * self.d_out])
        return patches.group_rows(g, self.groups)
