"""Blocks of convolutions."""

import functools
import itertools
import math

import keras
import tensorflow as tf

from tfkfac import keras_compat, linalg
from tfkfac.blocks.base import LayerCall
from tfkfac.blocks.dense import unsupported_variant
from tfkfac.blocks.kronecker import KroneckerBlock
from tfkfac.convolution import autocorrelation, patches
from tfkfac.convolution import method as methods
from tfkfac.tracing import traced_once


class ConvolutionBlock(KroneckerBlock):
    """`keras.layers.Conv1D`, `Conv2D` and `Conv3D` (Grosse and Martens 2016).

    The rows are the patches of all output positions; each group of channels
    has its own factors. Channels that come first are moved last before.
    """

    activation_is_last = True
    without_patches = True  # False has all blocks take patches.

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
        found = [
            _misplaced_bias(layer, shape)
            for shape in keras_compat.symbolic_input_shapes(layer)
        ]
        return next(filter(None, found), None) or unsupported_variant(layer)

    @classmethod
    def unsupported_call(cls, layer, inputs):
        return _misplaced_bias(layer, inputs.shape)

    def _channels_last(self, x):
        if self.layer.data_format == "channels_last":
            return x
        space = range(2, x.shape.rank)
        return tf.transpose(x, [0, *space, 1])

    def _window(self):
        layer = self.layer
        return patches.Window(
            tuple(layer.kernel_size),
            tuple(layer.strides),
            tuple(layer.dilation_rate),
            layer.padding,
        )

    def _windows(self):
        """Returns what the rows see: a window for each kind of them."""
        return [self._window()]

    def _geometry(self, window):
        """Returns what the choice of a method depends on besides the input."""
        size = math.prod(self.kernel.shape[:-2])
        return {
            "channels": self.groups * self.d_in // size,
            "groups": self.groups,
            "window": window,
            "gpu": methods.has_gpu(),
        }

    def _has_a_choice(self, product_dtype):
        return (
            self.without_patches
            and not self.factors[0].diagonal
            and product_dtype.size >= 4
        )

    def _method(self, window, space, product_dtype):
        """Returns the name of the method for inputs of this spatial shape."""
        if not self._has_a_choice(product_dtype):
            return "patches"
        return methods.choose(space, **self._geometry(window)).name

    def describe_method(self, product_dtype):
        """Returns the methods of all calls, as far as their sizes are known."""
        windows, possible = self._windows(), ["patches"]
        if self._has_a_choice(product_dtype):
            of_windows = [
                methods.possible(**self._geometry(window)) for window in windows
            ]
            possible = list(dict.fromkeys(itertools.chain(*of_windows)))
        spaces = self._symbolic_spaces()
        if len(possible) > 1 and (
            not spaces or any(None in space for space in spaces)
        ):
            *others, last = possible
            return f"{', '.join(others)} or {last} by the size of its input"
        names = {
            self._method(window, space, product_dtype)
            for window, space in itertools.product(windows, spaces)
        }
        return " and ".join(sorted(names)) or possible[0]

    def _symbolic_spaces(self):
        """Returns the spatial shapes of the inputs in functional models."""
        shapes = keras_compat.symbolic_input_shapes(self.layer)
        last = self.layer.data_format == "channels_last"
        return [x[1:-1] if last else x[2:] for x in shapes]

    def input_moment(self, inputs, mask, count, product_dtype, dtype):
        x = self._channels_last(inputs)
        if mask is not None:
            batch = tf.shape(x)[0]
            of_examples = tf.reshape(mask, [batch, -1])[:, 0]
            ones = [1] * (x.shape.rank - 1)
            of_examples = tf.reshape(of_examples, [batch, *ones])
            x *= tf.cast(of_examples, x.dtype)
        windows = self._windows()
        moments = {
            window: self._moment(x, window, count, product_dtype, dtype)
            for window in dict.fromkeys(windows)
        }
        return self._joined([moments[window] for window in windows])

    def _joined(self, moments):
        """Returns the moment of the rows for that of each kind of them."""
        (moment,) = moments
        return moment

    def _moment(self, x, window, count, product_dtype, dtype):
        """Returns the sum of a a^T over what a window sees of x."""
        if self._method(window, x.shape[1:-1], product_dtype) == "patches":
            rows = patches.extract(x, window)
            return linalg.second_moment(
                patches.group_rows(rows, self.groups),
                append_one=self.bias is not None,
                count=count,
                product_dtype=product_dtype,
                dtype=dtype,
                diagonal=self.factors[0].diagonal,
            )
        moment = _without_patches(window, self.groups, self.bias is not None)
        return moment(tf.cast(x, dtype), count)

    def mask_rows(self, inputs, mask):
        """Keras' convolutions do not look at masks of positions."""
        if mask.shape.rank > 1:
            return None
        sizes = tf.unstack(tf.shape(self._channels_last(inputs))[1:-1])
        outputs = [self._outputs(i, n) for i, n in enumerate(sizes)]
        mask = tf.repeat(tf.cast(mask, inputs.dtype), tf.reduce_prod(outputs))
        return mask[:, tf.newaxis]

    def _outputs(self, axis, n):
        """Returns the number of output positions for `n` inputs."""
        return self._window().outputs(axis, n)

    def output_rows(self, outputs):
        g = self._channels_last(outputs)
        g = tf.reshape(g, [-1, 1, self.groups * self.d_out])
        return patches.group_rows(g, self.groups)


def _misplaced_bias(layer, shape):
    """Returns where Keras adds the bias if not to channels, else None.

    `keras.ops.add` of Keras 3.15 takes a bias for one of the last axis if that
    is as long, also where the channels come first.
    """
    if layer.data_format == "channels_last" or layer.bias is None:
        return None
    _, channels, *_, width = layer.compute_output_shape(tuple(shape))
    if channels == 1 or channels != width:
        return None
    return (
        "Keras adds its bias along the last axis, which is as long as the "
        f"{channels} channels, which come first; give it no bias, or channels "
        "last"
    )


@functools.cache
def _without_patches(window: patches.Window, groups: int, append_one: bool):
    """Returns the function from x and the number of rows to their moment."""

    def moment(x, count):
        S = autocorrelation.second_moment(x, window, groups)
        if not append_one:
            return S
        return linalg.append_sums(S, patches.sums(x, window, groups), count)

    return traced_once(moment)


class DepthwiseConvolutionBlock(ConvolutionBlock):
    """`keras.layers.DepthwiseConv1D` and `2D`: a group for each channel."""

    def __init__(self, layer):
        self._init_depthwise(layer, layer.kernel, layer.bias)

    def _init_depthwise(self, layer, kernel, bias):
        *window, c_in, multiplier = kernel.shape
        KroneckerBlock.__init__(
            self,
            layer,
            kernel,
            bias,
            groups=c_in,
            d_in=math.prod(window),
            d_out=multiplier,
        )


class SeparableDepthwiseBlock(DepthwiseConvolutionBlock):
    """The depthwise part of `keras.layers.SeparableConv1D` and `2D`."""

    parts = ("depthwise",)

    def __init__(self, layer):
        self._init_depthwise(layer, layer.depthwise_kernel, None)

    @classmethod
    def for_layer(cls, layer, options):
        return [cls(layer), SeparablePointwiseBlock(layer)]

    @classmethod
    def record(cls, layer, call, keep, inputs, args, options):
        """Runs the two convolutions that Keras fuses, one by one."""
        x = keras.ops.depthwise_conv(
            inputs,
            layer.depthwise_kernel,
            strides=layer.strides,
            padding=layer.padding,
            dilation_rate=layer.dilation_rate,
            data_format=layer.data_format,
        )
        x = keep(LayerCall(layer, inputs, None, x, part="depthwise"))
        s = _pointwise(layer, x)
        if layer.bias is not None:
            last = layer.data_format == "channels_last"
            space = (1,) * layer.rank
            shape = (*space, layer.filters) if last else (layer.filters, *space)
            s += keras.ops.reshape(layer.bias, (1, *shape))
        s = keep(LayerCall(layer, x, None, s, part="pointwise"))
        return s if layer.activation is None else layer.activation(s)


def _pointwise(layer, x):
    """Returns the second convolution of a separable one, the bias left out.

    TensorFlow has none with channels first for all types on CPUs.
    """
    kernel = layer.pointwise_kernel
    if layer.data_format == "channels_last":
        return keras.ops.conv(x, kernel, data_format="channels_last")
    kernel = keras.ops.reshape(kernel, kernel.shape[-2:])
    return keras.ops.einsum("bc...,cd->bd...", x, kernel)


class SeparablePointwiseBlock(ConvolutionBlock):
    """The pointwise part of `keras.layers.SeparableConv1D` and `2D`."""

    parts = ("pointwise",)

    def __init__(self, layer):
        *_, c_in, c_out = layer.pointwise_kernel.shape
        KroneckerBlock.__init__(
            self,
            layer,
            layer.pointwise_kernel,
            layer.bias,
            d_in=c_in,
            d_out=c_out,
        )

    def _window(self):
        ones = (1,) * self.layer.rank
        return patches.Window(ones, ones, ones, "valid")
