"""Blocks of Dense and EinsumDense."""

import math
import re

import tensorflow as tf

from tfkfac.blocks.kronecker import KroneckerBlock


def unsupported_variant(layer) -> str | None:
    if getattr(layer, "quantization_mode", None) is not None:
        return "the layer is quantized, and its kernel is no trainable one"
    if getattr(layer, "lora_enabled", False):
        return "LoRA is enabled, which is covered in Dense and EinsumDense"
    return None


class DenseBlock(KroneckerBlock):
    """`keras.layers.Dense`: rows are all positions before the last axis."""

    activation_is_last = True

    def __init__(self, layer):
        d_in, d_out = layer.kernel.shape
        bias = layer.bias
        super().__init__(layer, layer.kernel, bias, d_in=d_in, d_out=d_out)

    @classmethod
    def unsupported(cls, layer):
        return unsupported_variant(layer)

    def input_rows(self, inputs):
        return tf.reshape(inputs, [1, -1, self.d_in])

    def output_rows(self, outputs):
        return tf.reshape(outputs, [1, -1, self.d_out])


class EinsumDenseBlock(KroneckerBlock):
    """`keras.layers.EinsumDense`: contracted by remaining kernel axes.

    Both in kernel order. Rows are the axes that input and output share; axes
    of the input that are in neither kernel nor output are summed, as the
    layer does. A bias that does not cover the remaining axes is left to the
    fallback.
    """

    activation_is_last = True

    def __init__(self, layer):
        self._parse(layer)
        sizes = dict(zip(self._kernel_axes, layer.kernel.shape))
        self._sizes_in = [sizes[x] for x in self._contracted]
        self._sizes_out = [sizes[x] for x in self._remaining]
        bias = layer.bias
        if bias is not None and set(layer.bias_axes) != set(self._remaining):
            bias = None
        self._bias_order = [
            x for x in self._output_axes if bias is not None
            and x in layer.bias_axes
        ]  # fmt: skip
        super().__init__(
            layer,
            layer.kernel,
            bias,
            d_in=math.prod(self._sizes_in),
            d_out=math.prod(self._sizes_out),
        )

    def _parse(self, layer):
        match = re.fullmatch(
            r"(\.\.\.)?([a-zA-Z]+)(\.\.\.)?,([a-zA-Z]+)->"
            r"(?:\.\.\.)?([a-zA-Z]+)(?:\.\.\.)?",
            layer.equation.replace(" ", ""),
        )
        left, inputs, right, kernel, outputs = match.groups()
        self._input_axes, self._output_axes = inputs, outputs
        self._kernel_axes = kernel
        self._ellipsis = -1 if left else (1 if right else 0)
        self._contracted = [x for x in kernel if x not in outputs]
        self._remaining = [x for x in kernel if x in outputs]
        self._summed = [
            x for x in inputs if x not in kernel and x not in outputs
        ]
        self._shared = [x for x in inputs if x in outputs]

    @classmethod
    def unsupported(cls, layer):
        inputs, rest = layer.equation.replace(" ", "").split(",")
        kernel, outputs = (x.replace(".", "") for x in rest.split("->"))
        inputs = inputs.replace(".", "")
        for axes in (inputs, kernel, outputs):
            if len(set(axes)) < len(axes):
                return f"an axis is repeated within {axes!r}"
        both = set(inputs) & set(kernel) & set(outputs)
        if both:
            return f"the kernel's axis {min(both)!r} stands in input and output"
        return unsupported_variant(layer)

    def _rows(self, x, axes, last, sizes):
        """Moves the axes `last` to the end and flattens the others."""
        elided = x.shape.rank - len(axes)
        offset = elided if self._ellipsis == -1 else 0
        place = {name: i + offset for i, name in enumerate(axes)}
        spare = range(elided) if offset else range(len(axes), x.shape.rank)
        summed = [place[n] for n in self._summed if n in place]
        order = [*spare] if offset else []
        order += [place[n] for n in self._shared]
        order += [] if offset else [*spare]
        order += summed + [place[n] for n in last]
        x = tf.transpose(x, order)
        if summed:
            first = x.shape.rank - len(last) - len(summed)
            x = tf.reduce_sum(x, axis=[*range(first, first + len(summed))])
        return tf.reshape(x, [1, -1, math.prod(sizes)])

    def mask_rows(self, inputs, mask):
        elided = inputs.shape.rank - len(self._input_axes)
        names = [None] * elided + list(self._input_axes)
        if self._ellipsis == 1:
            names = list(self._input_axes)
        if set(names[: mask.shape.rank]) & {*self._contracted, *self._summed}:
            return None
        return super().mask_rows(inputs, mask)

    def input_rows(self, inputs):
        return self._rows(
            inputs, self._input_axes, self._contracted, self._sizes_in
        )

    def output_rows(self, outputs):
        return self._rows(
            outputs, self._output_axes, self._remaining, self._sizes_out
        )

    def kernel_matrix(self, kernel):
        axes = self._kernel_axes
        order = [axes.index(x) for x in self._contracted + self._remaining]
        kernel = tf.transpose(kernel, order)
        return tf.reshape(kernel, [1, self.d_in, self.d_out])

    def kernel_from_matrix(self, matrix):
        kernel = tf.reshape(matrix, self._sizes_in + self._sizes_out)
        axes = self._contracted + self._remaining
        return tf.transpose(kernel, [axes.index(x) for x in self._kernel_axes])

    def bias_matrix(self, bias):
        sizes = dict(zip(self._remaining, self._sizes_out))
        bias = tf.reshape(bias, [sizes[x] for x in self._bias_order])
        order = [self._bias_order.index(x) for x in self._remaining]
        return tf.reshape(tf.transpose(bias, order), [1, 1, self.d_out])

    def bias_from_matrix(self, matrix):
        bias = tf.reshape(matrix, self._sizes_out)
        order = [self._remaining.index(x) for x in self._bias_order]
        return tf.reshape(tf.transpose(bias, order), self.bias.shape)
