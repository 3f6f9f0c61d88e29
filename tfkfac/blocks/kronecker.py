"""Blocks of layers with s = W^T a: F = A (x) G."""

import abc
from collections.abc import Sequence

import tensorflow as tf

from tfkfac import linalg
from tfkfac.blocks.base import LayerCall, Moment
from tfkfac.blocks.factored import FactoredBlock
from tfkfac.factors import DenseFactor


class KroneckerBlock(FactoredBlock):
    """A linear layer s = W^T a, perhaps in groups, as A (x) G.

    V stacks the kernel, flattened to [d_in, d_out], and last the bias; `a`
    then ends in 1. An own layer sets `kernel`, `bias` and the sizes in its
    constructor and says how its tensors become rows.

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
        return self.input_rows(mask)[0, :, :1]

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
        g, mask = self.output_rows(use.gradient), None
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
        a = self.input_rows(inputs)
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
