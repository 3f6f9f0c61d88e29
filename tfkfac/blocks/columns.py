"""Columns of the kernels of recurrent cells: gates that see the same."""

import dataclasses
import math

import tensorflow as tf

from tfkfac.blocks.base import LayerCall
from tfkfac.blocks.convolution import ConvolutionBlock
from tfkfac.blocks.kronecker import KroneckerBlock
from tfkfac.convolution import patches


class ColumnsBlock(KroneckerBlock):
    """Columns of a kernel of a cell, and of its bias, as A (x) G.

    Those of all gates, where these have the same inputs.

    Args:
        layer: The recurrent layer.
        place: The number of the cell, and 0 for its kernel or 1 for the
            recurrent one: the row that is the kernel's of a bias of both.
        kernel: The kernel.
        gate: The number of the first of its gates.
        columns: Those of its gates.
        bias: The bias, or None.
        prefix: What the names of its state begin with.
    """

    def __init__(self, layer, place, kernel, gate, columns, bias, prefix):
        KroneckerBlock.__init__(
            self,
            layer,
            kernel,
            bias,
            d_in=math.prod(kernel.shape[:-1]),
            d_out=columns.stop - columns.start,
            prefix=prefix,
        )
        self.place, self.gate, self.columns = place, gate, columns

    def input_rows(self, inputs):
        return tf.reshape(inputs, [1, -1, self.d_in])

    def output_rows(self, outputs):
        return tf.reshape(outputs, [1, -1, self.d_out])

    def own_columns(self, x: tf.Tensor) -> tf.Tensor:
        """Returns those of its gates; x itself where there are no others."""
        return x if self._beside == [0, 0] else x[..., self.columns]

    def output_moment(self, use, g, mask, count, product_dtype, dtype):
        """Both kernels of a cell may have the same gradients: then once."""
        key = id(use.gradient), self.factors[1].diagonal
        if key not in use.saved:
            use.saved[key] = super().output_moment(
                use, g, mask, count, product_dtype, dtype
            )
        return use.saved[key]

    def kernel_matrix(self, kernel):
        return super().kernel_matrix(self.own_columns(kernel))

    def kernel_from_matrix(self, matrix):
        """Returns zeros in the columns that are not its own."""
        matrix = tf.reshape(matrix, [self.d_in, self.d_out])
        matrix = tf.pad(matrix, [[0, 0], self._beside])
        return tf.reshape(matrix, self.kernel.shape)

    def bias_matrix(self, bias):
        rows = tf.reshape(bias, [-1, self.kernel.shape[-1]])
        return super().bias_matrix(rows[self.place[1], self.columns])

    def bias_from_matrix(self, matrix):
        """Returns zeros in the columns that are not its own."""
        row = tf.pad(tf.reshape(matrix, [self.d_out]), [self._beside])
        zero = tf.zeros_like(row)
        count = self.bias.shape.num_elements() // self.kernel.shape[-1]
        rows = [row if i == self.place[1] else zero for i in range(count)]
        return tf.reshape(tf.stack(rows), self.bias.shape)

    @property
    def _beside(self) -> list[int]:
        """How many columns of others come before and after."""
        return [self.columns.start, self.kernel.shape[-1] - self.columns.stop]


class ConvolutionColumnsBlock(ColumnsBlock, ConvolutionBlock):
    """Columns of a kernel of the cell of a `ConvLSTM`.

    Each step of an example is an image, the channels last by now. The mask is
    one of steps, or of positions: what such a one leaves is no convolution any
    more, and the moment is that of patches.
    """

    def _channels_last(self, x):
        return x

    def _window(self):
        cell = self.layer.cell
        if self.kernel is cell.kernel:
            return _window_of_inputs(cell)
        ones = (1,) * cell.rank
        return patches.Window(tuple(cell.kernel_size), ones, ones, "same")

    def _symbolic_spaces(self):
        """Returns the spatial shape, which any cell that is built knows."""
        cell = self.layer.cell
        if self.kernel is cell.kernel:
            return [tuple(cell.spatial_dims)]
        window = _window_of_inputs(cell)
        sizes = enumerate(cell.spatial_dims)
        return [tuple(window.outputs(i, n) for i, n in sizes)]

    def moments(self, uses, product_dtype, dtype):
        uses = [self._without_steps(use) for use in uses]
        return super().moments(uses, product_dtype, dtype)

    def _without_steps(self, use: LayerCall) -> LayerCall:
        """Returns a use whose inputs are images or, by a mask of positions,
        rows: [rows, d_in]."""
        x, mask = _joined(use.inputs), use.mask
        if mask is not None and mask.shape.rank > 2:
            x = tf.reshape(patches.extract(x, self._window()), [-1, self.d_in])
            mask = tf.broadcast_to(mask, tf.shape(use.gradient)[:-1])
            mask = tf.reshape(mask, [-1])
        elif mask is not None:
            mask = _joined(mask)
        return dataclasses.replace(use, inputs=x, mask=mask)

    def mask_rows(self, inputs, mask):
        return _of(inputs).mask_rows(self, inputs, mask)

    def input_moment(self, inputs, mask, count, product_dtype, dtype):
        return _of(inputs).input_moment(
            self, inputs, mask, count, product_dtype, dtype
        )


def _of(inputs) -> type[KroneckerBlock]:
    """Returns what knows the moment of images, or of rows."""
    return KroneckerBlock if inputs.shape.rank == 2 else ConvolutionBlock


def _window_of_inputs(cell) -> patches.Window:
    return patches.Window(
        tuple(cell.kernel_size),
        tuple(cell.strides),
        tuple(cell.dilation_rate),
        cell.padding,
    )


def _joined(x):
    """Joins the axes of the steps and the batch."""
    return tf.reshape(x, [-1, *x.shape[2:]])
