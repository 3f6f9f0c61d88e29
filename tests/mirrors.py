"""What stands for a Keras layer in a net of `reference_layers`."""

import keras
import numpy as np
import reference_convlstm
import reference_embeddings
import reference_layers
import reference_norms
import reference_recurrent
import reference_scales
import reference_transposed

NORMS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
)
TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
CONV_LSTMS = (
    keras.layers.ConvLSTM1D,
    keras.layers.ConvLSTM2D,
    keras.layers.ConvLSTM3D,
)
FUNCTIONS = {
    keras.activations.relu: reference_layers.RELU,
    keras.activations.tanh: reference_layers.TANH,
}
LEFT_TO_THE_LOSS = (  # those of `reference` take logits
    keras.activations.linear,
    keras.activations.softmax,
    keras.activations.sigmoid,
)
POOLING = reference_layers.Function(
    lambda x: x.mean(1),
    lambda x, g: np.repeat(g[:, np.newaxis], x.shape[1], 1) / x.shape[1],
)


def mirror(layer, shape, norm_curvature="diagonal", tied="pooled"):
    """The stages that stand for a Keras layer with inputs of `shape`.

    A layer of a test has a method that returns them.
    """
    if hasattr(layer, "mirror"):
        return layer.mirror(shape)
    if isinstance(layer, keras.layers.Flatten):
        return [reference_layers.FLATTEN]
    if isinstance(layer, keras.layers.Masking):
        return [reference_layers.MASKING]
    if isinstance(layer, keras.layers.GlobalAveragePooling1D):
        return [POOLING]
    if isinstance(layer, keras.layers.Cropping1D):
        return [_cropping(*layer.cropping)]
    if isinstance(layer, keras.layers.ReversibleEmbedding):
        return [
            reference_embeddings.TiedEmbedding(
                _array(layer.embeddings),
                layer.logit_soft_cap,
                tied == "balanced",
            )
        ]
    if isinstance(layer, keras.layers.Embedding):
        return [reference_embeddings.Embedding(_array(layer.embeddings))]
    if isinstance(layer, CONV_LSTMS):
        return [_conv_lstm(layer)]
    if isinstance(layer, keras.layers.RNN):
        return [_recurrent(layer)]
    if isinstance(layer, NORMS):
        return [_normalization(layer, len(shape), norm_curvature)]
    if isinstance(layer, keras.layers.PReLU):
        axes = set(range(1, len(shape))) - set(layer.shared_axes or ())
        return [reference_scales.PReLU(_array(layer.alpha), None, axes)]
    if isinstance(layer, keras.layers.RMSNormalization):
        axes = [axis % len(shape) for axis in layer.axis]
        return [
            reference_scales.RMSNormalization(
                _array(layer.scale), axes, layer.epsilon
            )
        ]
    stages = []
    if not isinstance(layer, keras.layers.Activation):
        stages = _linear(layer, len(shape))
    if layer.activation not in LEFT_TO_THE_LOSS:
        stages.append(FUNCTIONS[layer.activation])
    if getattr(layer, "data_format", None) == "channels_first":
        last, first = (
            reference_layers.CHANNELS_LAST,
            reference_layers.CHANNELS_FIRST,
        )
        return [last, *stages, first]
    return stages


def _linear(layer, rank):
    bias = _array(layer.bias)
    if isinstance(layer, keras.layers.EinsumDense):
        equation = spell_out(layer.equation, rank)
        return [
            reference_layers.Einsum(
                equation, _array(layer.kernel), bias, layer.bias_axes or ""
            )
        ]
    if isinstance(layer, keras.layers.Dense):
        return [reference_layers.Layer([_array(layer.kernel)], bias)]
    window = layer.strides, layer.padding, layer.dilation_rate
    if isinstance(layer, TRANSPOSED):
        kernel, more = _array(layer.kernel), layer.output_padding
        return [
            reference_transposed.TransposedConvolution(
                kernel, bias, *window, more
            )
        ]
    convolution = reference_layers.Convolution
    if isinstance(
        layer, keras.layers.SeparableConv1D | keras.layers.SeparableConv2D
    ):
        kernel, groups = _as_groups(layer.depthwise_kernel)
        return [
            convolution(kernel, None, *window, groups),
            convolution(_array(layer.pointwise_kernel), bias),
        ]
    if isinstance(
        layer, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D
    ):
        kernel, groups = _as_groups(layer.kernel)
        return [convolution(kernel, bias, *window, groups)]
    return [convolution(_array(layer.kernel), bias, *window, layer.groups)]


def _recurrent(layer):
    cell = layer.cell
    kind = {
        keras.layers.SimpleRNNCell: reference_recurrent.Simple,
        keras.layers.LSTMCell: reference_recurrent.LSTM,
        keras.layers.GRUCell: reference_recurrent.GRU,
    }[type(cell)]
    if not getattr(cell, "reset_after", True):
        kind = reference_recurrent.GRUResetBefore
    return reference_recurrent.Recurrent(
        kind,
        _array(cell.kernel),
        _array(cell.recurrent_kernel),
        _array(cell.bias),
        layer.return_sequences,
        layer.go_backwards,
    )


def _conv_lstm(layer):
    """By a layer of a test its mask is of positions; then `by_position`."""
    cell = layer.cell
    return reference_convlstm.ConvLSTM(
        _array(cell.kernel),
        _array(cell.recurrent_kernel),
        _array(cell.bias),
        (cell.strides, cell.padding, cell.dilation_rate),
        layer.return_sequences,
        layer.go_backwards,
        getattr(layer, "by_position", False),
    )


def _as_groups(kernel):
    """A depthwise kernel [*window, c, m] as [*window, 1, c m], and c."""
    *window, c, multiplier = kernel.shape
    return _array(kernel).reshape(*window, 1, c * multiplier), c


def _normalization(layer, rank, curvature):
    axes = layer.axis if isinstance(layer.axis, list) else [layer.axis]
    axes = [axis % rank for axis in axes]
    groups, rms = None, getattr(layer, "rms_scaling", False)
    if isinstance(layer, keras.layers.BatchNormalization):
        over = [axis for axis in range(rank) if axis not in axes]
    elif isinstance(layer, keras.layers.LayerNormalization):
        over = axes
    else:  # all but the batch and the groups, the channels' first half
        groups = layer.groups
        over = [*range(1, rank - 1), rank]
    return reference_norms.Normalization(
        _array(layer.gamma),
        _array(layer.beta),
        axes,
        over,
        layer.epsilon,
        groups,
        rms,
        curvature,
    )


def _cropping(before, after):
    def kept(x):
        return slice(before, x.shape[1] - after)

    def back(x, g):
        gradient = np.zeros_like(x)
        gradient[:, kept(x)] = g
        return gradient

    return reference_layers.Function(lambda x: x[:, kept(x)], back)


def _array(variable):
    return None if variable is None else np.asarray(variable, np.float64)


def spell_out(equation, rank):
    """Puts letters for the dots of an EinsumDense equation."""
    inputs = equation.split(",")[0]
    count = rank - len(inputs.replace("...", ""))
    return equation.replace("...", "ABCDEF"[:count])
