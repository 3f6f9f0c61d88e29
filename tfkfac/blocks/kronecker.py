"""Blocks of layers with s = W^T a: F = A (x) G."""

import abc
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfkfac import linalg
from tfkfac.blocks.base import LayerCall, Moment
from tfkfac.blocks.factored import FactoredBlock
from tfkfac.factors import DenseFactor


class KroneckerBlock(FactoredBlock):
    """A linear layer s = W^T a, perhaps in groups, as A (x) G.

    V stacks the kernel as [groups, d_in, d_out], and last the bias; `a` then
    ends in 1. An own layer sets `kernel`, `bias` and the sizes in its
    constructor and says how its tensors become rows.

    The kernel is taken to be [d_in, groups, d_out] when its axes are merged, as
    of Keras' grouped and depthwise convolutions, and the bias [groups, d_out]:
    with one group the kernel is [d_in, d_out]. Of another layout, such as
    [groups, d_in, d_out], a subclass has `kernel_matrix` and
    `kernel_from_matrix`.

    Attributes:
        kernel: The kernel's variable; the block is for trainable kernels.
        bias: The bias' variable, or None where there is no trainable one.
        groups: The number of independent groups.
        d_in: The number of inputs of a group, the bias not counted.
        d_out: The number of outputs of a group.
    """

    def __init__(
        self, layer, kernel, bias, *, groups=1, d_in, d_out, prefix=""
    ):
        super().__init__(layer)
        self.prefix = prefix
        self.kernel = kernel
        self.bias = bias if bias is not None and bias.trainable else None
        self.variables = [kernel] if self.bias is None else [kernel, bias]
        self.groups, self.d_in, self.d_out = groups, d_in, d_out
        side = d_in + (self.bias is not None)
        self.factors = [
            DenseFactor(prefix + name, groups, dim, rows_are_terms=of_terms)
            for name, dim, of_terms in (
                ("input_factor", side, True),
                ("output_factor", d_out, False),
            )
        ]
        _check_layout(self)

    def input_rows(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns the rows `a` without the 1, [groups, rows, d_in].

        A subclass has this, or `input_moment` and `mask_rows`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} needs `input_rows`, or `input_moment` and "
            "`mask_rows`."
        )

    @abc.abstractmethod
    def output_rows(self, outputs: tf.Tensor) -> tf.Tensor:
        """Returns the rows of something shaped as s, [groups, rows, d_out]."""

    def mask_rows(self, inputs: tf.Tensor, mask: tf.Tensor) -> tf.Tensor | None:
        """Returns 1 for rows that count and 0 for masked ones, [rows, 1].

        None where the mask is not one of rows.
        """
        mask = tf.cast(mask, inputs.dtype)
        ones = [1] * (inputs.shape.rank - mask.shape.rank)
        mask = tf.reshape(mask, tf.concat([tf.shape(mask), ones], axis=0))
        mask = tf.broadcast_to(mask, tf.shape(inputs))
        return _rows(self, "input_rows", mask, "d_in")[0, :, :1]

    def kernel_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """Returns [groups, d_in, d_out] for something shaped as the kernel."""
        if self.groups == 1:
            return tf.reshape(kernel, [1, self.d_in, self.d_out])
        matrix = tf.reshape(kernel, [self.d_in, self.groups, self.d_out])
        return tf.transpose(matrix, [1, 0, 2])

    def kernel_from_matrix(self, matrix: tf.Tensor) -> tf.Tensor:
        """Undoes `kernel_matrix`."""
        if self.groups > 1:
            matrix = tf.transpose(matrix, [1, 0, 2])
        return tf.reshape(matrix, self.kernel.shape)

    def bias_matrix(self, bias: tf.Tensor) -> tf.Tensor:
        """Returns [groups, 1, d_out] for something shaped as the bias."""
        return tf.reshape(bias, [self.groups, 1, self.d_out])

    def bias_from_matrix(self, matrix: tf.Tensor) -> tf.Tensor:
        """Undoes `bias_matrix`."""
        return tf.reshape(matrix, self.bias.shape)

    def moments(self, uses, product_dtype, dtype):
        parts = [self._moments_of(use, product_dtype, dtype) for use in uses]
        return [Moment.sum(of_factor) for of_factor in zip(*parts)]

    def _moments_of(
        self, use: LayerCall, product_dtype, dtype
    ) -> Sequence[Moment]:
        g, mask = _rows(self, "output_rows", use.gradient, "d_out"), None
        if use.mask is not None:
            mask = self.mask_rows(use.inputs, use.mask)
        if mask is None:
            count = tf.cast(tf.shape(g)[1], dtype)
        else:
            count = tf.reduce_sum(tf.cast(mask, dtype))
        G = self.output_moment(use, g, mask, count, product_dtype, dtype)
        A = self.input_moment(use.inputs, mask, count, product_dtype, dtype)
        return [Moment(A, count), Moment(G, count)]

    def output_moment(
        self,
        use: LayerCall,
        g: tf.Tensor,
        mask: tf.Tensor | None,
        count: tf.Tensor,
        product_dtype: tf.DType,
        dtype: tf.DType,
    ) -> tf.Tensor:
        """Returns the sum over the rows of g g^T, or its diagonal.

        Args:
            use: A call of the layer.
            g: Its gradients, as `output_rows` gave them.
            mask, count, product_dtype, dtype: As of `input_moment`.
        """
        G = linalg.second_moment(
            g if mask is None else g * tf.cast(mask, g.dtype),
            append_one=False,
            count=count,
            product_dtype=product_dtype,
            dtype=dtype,
            diagonal=self.factors[1].diagonal,
        )
        return use.times_square_of_scale(G)

    def input_moment(
        self,
        inputs: tf.Tensor,
        mask: tf.Tensor | None,
        count: tf.Tensor,
        product_dtype: tf.DType,
        dtype: tf.DType,
    ) -> tf.Tensor:
        """Returns the sum over the rows of a a^T, or its diagonal.

        Args:
            inputs: Of a call of the layer.
            mask: What `mask_rows` gave.
            count: The number of rows that count.
            product_dtype, dtype: As of `linalg.second_moment`.
        """
        a = _rows(self, "input_rows", inputs, "d_in")
        return linalg.second_moment(
            a if mask is None else a * tf.cast(mask, a.dtype),
            append_one=self.bias is not None,
            count=count,
            product_dtype=product_dtype,
            dtype=dtype,
            diagonal=self.factors[0].diagonal,
        )

    def to_matrix(self, gradients):
        V = self.kernel_matrix(gradients[0])
        if self.bias is None:
            return V
        return tf.concat([V, self.bias_matrix(gradients[1])], axis=1)

    def from_matrix(self, matrix):
        if self.bias is None:
            return [self.kernel_from_matrix(matrix)]
        return [
            self.kernel_from_matrix(matrix[:, :-1]),
            self.bias_from_matrix(matrix[:, -1:]),
        ]


def _check_layout(block: KroneckerBlock) -> None:
    """Raises ValueError for weights whose shapes tell that they are not laid
    out as `kernel_matrix` and `bias_matrix` take them."""
    kind, sizes = type(block), [block.d_in, block.groups, block.d_out]
    if kind.to_matrix is not KroneckerBlock.to_matrix:
        return
    if kind.kernel_matrix is KroneckerBlock.kernel_matrix:
        shape = list(block.kernel.shape)
        axes, order = ([n for n in of if n != 1] for of in (shape, sizes))
        turned = sorted(axes) == sorted(order) and axes != order
        # As of grouped convolutions: [..., groups d_out], with d_in before.
        turned = turned and math.prod(shape[:-1]) != block.d_in
        if turned or math.prod(shape) != math.prod(sizes):
            raise ValueError(
                f"{block.layer.name}: {kind.__name__} takes its kernel to be "
                f"[d_in, groups, d_out] = {sizes}, and it has shape {shape}. "
                "Give the block's sizes, or for another layout "
                "`kernel_matrix`, which returns [groups, d_in, d_out], and "
                "`kernel_from_matrix`, which undoes it."
            )
    if block.bias is None:
        return
    if kind.bias_matrix is KroneckerBlock.bias_matrix:
        shape = list(block.bias.shape)
        if math.prod(shape) != math.prod(sizes[1:]):
            raise ValueError(
                f"{block.layer.name}: {kind.__name__} takes its bias to be "
                f"[groups, d_out] = {sizes[1:]}, and it has shape {shape}: for "
                "another one it needs `bias_matrix` and `bias_from_matrix`."
            )


def _rows(block: KroneckerBlock, method: str, x: Any, last: str) -> tf.Tensor:
    """Returns what a method gives for x, which is to be rows.

    Args:
        block: The block.
        method: "input_rows" or "output_rows".
        x: What the method is given.
        last: The attribute that is the size of the last axis.
    """
    rows = getattr(block, method)(x)
    groups, size = block.groups, getattr(block, last)
    if not rows.shape.is_compatible_with([groups, None, size]):
        raise ValueError(
            f"{block.layer.name}: `{method}` of {type(block).__name__} is to "
            f"return [groups, rows, {last}] = [{groups}, rows, {size}], and "
            f"for {x.shape} it returned {rows.shape}. What has rows, such as "
            "examples and time, is to be reshaped to one axis."
        )
    return rows
