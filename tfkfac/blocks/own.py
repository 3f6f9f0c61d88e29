"""Blocks of weights that a layer of one's own reads in an operation."""

import dataclasses
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfkfac.blocks.base import LayerCall
from tfkfac.blocks.convolution import ConvolutionBlock
from tfkfac.blocks.kronecker import KroneckerBlock
from tfkfac.blocks.scale import ScaleShiftBlock
from tfkfac.convolution.patches import Window
from tfkfac.products.contraction import View
from tfkfac.products.uses import stripped


@dataclasses.dataclass(frozen=True)
class Part:
    """What a layer does with one weight, the same in all calls.

    Attributes:
        kind: "product", "convolution", "scale" or "shift".
        weight: The name of the weight.
        view: The weight as it enters the operation.
        order: Of a product, the axes of the kernel: of groups, contracted,
            remaining.
        sizes: Of a product or convolution, (groups, d_in, d_out).
        shift: The name of the weight that is added to the result, or None.
        window: Of a convolution.
    """

    kind: str
    weight: str
    view: View
    order: tuple[int, ...] = ()
    sizes: tuple[int, int, int] = (1, 1, 1)
    shift: str | None = None
    window: Window | None = None

    def is_as(self, other: "Part | None") -> bool:
        """Whether another part has the same matrix of each weight."""
        if other is None or self == other:
            return self == other
        same = dataclasses.replace(other, view=self.view, order=self.order)
        if self != same:
            return False
        if self.kind != "product":
            return stripped(self.view.shape) == stripped(other.view.shape)
        return np.array_equal(self._places(), other._places())

    def _places(self):
        """Returns the elements of the weight, in the order of the matrix."""
        return self.view.places().transpose(self.order).ravel()


class ProductBlock(KroneckerBlock):
    """A product of what comes of the inputs and a kernel: F = A (x) G.

    The kernel is as it enters the product: reshaped or transposed, on the left
    or on the right, or in an einsum. Rows are the axes that the other operand
    shares with the result; axes that kernel, operand and result share number
    groups.

    Args:
        layer: The layer.
        part: The product.
        weights: The layer's weights by name.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        part: Part,
        weights: Mapping[str, keras.Variable],
    ):
        _begin(self, layer, part, weights)

    def kernel_matrix(self, kernel):
        view = tf.transpose(self._part.view.of(kernel), self._part.order)
        return tf.reshape(view, self._part.sizes)

    def kernel_from_matrix(self, matrix):
        order, shape = self._part.order, self._part.view.shape
        view = tf.reshape(matrix, [shape[i] for i in order])
        view = tf.transpose(view, [order.index(i) for i in range(len(order))])
        return self._part.view.back(view)

    def precondition(self, gradients, damping):
        """In the type of the kernel: with LoRA the bias may have another."""
        kernel, *_ = gradients
        V = [tf.cast(g, kernel.dtype) for g in gradients]
        U = super().precondition(V, damping)
        return [tf.cast(u, g.dtype) for u, g in zip(U, gradients)]

    def _moments_of(self, use, product_dtype, dtype):
        """With the tensors as rows, which depend on the call."""
        of, mask = use.saved.contraction, _mask(use)
        groups, d_in, d_out = self._part.sizes
        use = dataclasses.replace(
            use,
            inputs=of.input_rows(use.inputs, groups, d_in),
            gradient=of.output_rows(use.gradient, groups, d_out),
            mask=None if mask is None else of.mask_rows(mask, use.inputs),
        )
        return super()._moments_of(use, product_dtype, dtype)

    def input_rows(self, inputs):
        return inputs

    def output_rows(self, outputs):
        return outputs

    def mask_rows(self, inputs, mask):
        return mask


class OwnConvolutionBlock(ConvolutionBlock):
    """A convolution in a layer of one's own; channels come last.

    Args:
        layer: The layer.
        part: The convolution.
        weights: The layer's weights by name.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        part: Part,
        weights: Mapping[str, keras.Variable],
    ):
        _begin(self, layer, part, weights)

    def _channels_last(self, x):
        return x

    def _window(self):
        return self._part.window

    def _symbolic_spaces(self):
        return []  # The layer's inputs need not be those of the convolution.


class ElementwiseBlock(ScaleShiftBlock):
    """s = gamma x + beta in a layer of one's own, either of the two or both.

    Of F the diagonal is kept: a shift may be of all positions.

    Args:
        layer: The layer.
        part: The scale or the shift.
        weights: The layer's weights by name.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        part: Part,
        weights: Mapping[str, keras.Variable],
    ):
        scale = weights[part.weight] if part.kind == "scale" else None
        name = part.shift if part.kind == "scale" else part.weight
        shift = None if name is None else weights[name]
        super().__init__(layer, curvature="diagonal", weights=(scale, shift))
        self._shape, self.parts = part.view.shape, (part.weight,)

    def channel_axes(self, rank):
        first = rank - len(self._shape)
        return [first + i for i, n in enumerate(self._shape) if n != 1]

    def normalized(self, use):
        return use.inputs

    def moments(self, uses, product_dtype, dtype):
        uses = [dataclasses.replace(use, mask=_mask(use)) for use in uses]
        return super().moments(uses, product_dtype, dtype)


def _begin(block, layer, part, weights) -> None:
    """Makes a block that of the kernel of a product or a convolution."""
    groups, d_in, d_out = part.sizes
    KroneckerBlock.__init__(
        block,
        layer,
        weights[part.weight],
        None if part.shift is None else weights[part.shift],
        groups=groups,
        d_in=d_in,
        d_out=d_out,
    )
    block._part, block.parts = part, (part.weight,)


def _mask(use: LayerCall) -> tf.Tensor | None:
    """Returns the mask of the layer's inputs as one of the operand."""
    return None if use.mask is None else use.saved.mask(use.mask)
