"""The block of transposed convolutions."""

import math

import tensorflow as tf

from tfkfac.blocks.convolution import ConvolutionBlock
from tfkfac.blocks.kronecker import KroneckerBlock
from tfkfac.convolution.transposed import TransposedConvolution


class TransposedConvolutionBlock(ConvolutionBlock):
    """`keras.layers.Conv1DTranspose`, `Conv2DTranspose`, `Conv3DTranspose`.

    The layer is s = W^T a at each output position: at (tap k, channel), a holds
    the input that reaches the position through tap k of the kernel, or 0 where
    none does, and last a 1 for the bias. R is the number of output positions of
    all examples, A = (1/N) sum_r a_r a_r^T, G = (1/R) sum_r g_r g_r^T. A, V and
    U have the taps row-major as in the kernel, each with its input channels:
    [k_1 ... k_d c_in (+ 1), c_out], so that the last two axes of Keras' kernel,
    [*size, c_out, c_in], change places.

    Taps of different phases (`convolution.transposed`) meet at no position:
    their elements of A are 0, but for the sums beside the 1. The other elements
    are second moments of convolutions with stride 1, one for each phase, by any
    method of `convolution.method`. With strides s and a kernel of size k, whole
    multiples of s, on d axes, n^d inputs of C channels take

        patches by phases          n^d (k^2 / s)^d C^2  multiplications,
                                   n^d k^d C            elements of patches
        rows of all taps           n^d (k^2 s)^d C^2    multiplications,
                                   n^d (k s)^d C        elements of rows

    and the convolutions of a phase are cheaper than its patches where they are
    chosen. Phases that see the same inputs, all of a kernel of the size of the
    strides, share one moment.
    """

    def __init__(self, layer):
        *size, c_out, self._channels = layer.kernel.shape
        KroneckerBlock.__init__(
            self,
            layer,
            layer.kernel,
            layer.bias,
            d_in=math.prod(size) * self._channels,
            d_out=c_out,
        )
        self._transposed = TransposedConvolution(
            size,
            layer.strides,
            layer.dilation_rate,
            layer.padding,
            layer.output_padding,
        )

    def _windows(self):
        return self._transposed.windows

    def _joined(self, moments):
        return self._transposed.join(moments, self._channels)

    def _outputs(self, axis, n):
        return self._transposed.outputs(axis, n)

    def kernel_matrix(self, kernel):
        return super().kernel_matrix(tf.linalg.matrix_transpose(kernel))

    def kernel_from_matrix(self, matrix):
        *size, c_out, c_in = self.kernel.shape
        kernel = tf.reshape(matrix, [*size, c_in, c_out])
        return tf.linalg.matrix_transpose(kernel)
