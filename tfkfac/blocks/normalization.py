"""Blocks of normalization layers."""

import keras
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.blocks.scale import ScaleShiftBlock, widened


class BatchNormalizationBlock(ScaleShiftBlock):
    """`keras.layers.BatchNormalization`."""

    @classmethod
    def unsupported(cls, layer):
        if getattr(layer, "renorm", False):
            return "renorm is on"
        if layer.synchronized:
            return "its statistics are synchronized"
        return None

    def channel_axes(self, rank):
        return [self.layer.axis]

    @classmethod
    def record(cls, layer, call, keep, inputs, args, options):
        moments = []

        def noting(*args, **options):
            with keras_compat.noting_moments(layer, moments):
                return call(*args, **options)

        def keep_with_moments(use):
            if moments:
                use.saved = moments[0]
            if cls._is_fused(use):
                use.shortcut = _FusedGradient(layer, use.inputs, *moments[0])
            return keep(use)

        return super().record(
            layer, noting, keep_with_moments, inputs, args, options
        )

    @staticmethod
    def _is_fused(use):
        """Whether what it did is what TensorFlow has one operation for."""
        layer, x = use.layer, use.inputs
        if use.saved is None or use.options.get("mask") is not None:
            return False
        if not keras_compat.has_stock_moments(layer):
            return False
        last = layer.axis % x.shape.rank == x.shape.rank - 1
        return last and x.dtype == use.pre_activation.dtype == tf.float32

    def scale_gradients(self, use, g):
        """As sum_t g_it x_it - mean sum_t g_it, without xhat.

        So does Keras' own gradient of gamma, in which as much is lost where
        the mean is large against the deviation.
        """
        layer = self.layer
        mean, variance = use.saved or (
            layer.moving_mean.value,
            layer.moving_variance.value,
        )
        mean, variance = (
            tf.reshape(tf.cast(v, g.dtype), [-1]) for v in (mean, variance)
        )
        of_inputs = self._per_example(g * tf.cast(use.inputs, g.dtype))
        centered = of_inputs - mean * self._per_example(g)
        return centered * tf.math.rsqrt(variance + layer.epsilon)


class LayerNormalizationBlock(ScaleShiftBlock):
    """`keras.layers.LayerNormalization`, `rms_scaling` too."""

    def channel_axes(self, rank):
        return list(self.layer.axis)

    def normalized(self, use):
        layer = self.layer
        return keras.ops.layer_normalization(
            widened(use.inputs),
            None,
            None,
            layer.axis,
            layer.epsilon,
            rms_scaling=layer.rms_scaling,
        )


class GroupNormalizationBlock(ScaleShiftBlock):
    """`keras.layers.GroupNormalization`."""

    def channel_axes(self, rank):
        return [self.layer.axis]

    def normalized(self, use):
        return keras_compat.group_normalized(self.layer, widened(use.inputs))


class _FusedGradient:
    """The gradient of batch normalization by the last axis, one operation.

    Keras' own is a dozen, which take four times as long on a CPU.

    Args:
        layer: A `keras.layers.BatchNormalization`, in training.
        x: Its inputs, float32.
        mean, variance: Of x.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        x: tf.Tensor,
        mean: tf.Tensor,
        variance: tf.Tensor,
    ):
        self._x, channels = x, x.shape[-1]
        # As the forward pass takes it: another optimizer may move it first.
        gamma = layer.gamma
        self._gamma = (
            tf.ones([channels]) if gamma is None else tf.identity(gamma.value)
        )
        self._moments = mean, variance
        self._settings = {"epsilon": layer.epsilon, "is_training": True}

    def _images(self, x):
        """Returns x with four axes."""
        if x.shape.rank == 4:
            return x
        return tf.reshape(x, [-1, 1, 1, self._x.shape[-1]])

    def _saved(self, x):
        """Returns what the operation takes of the forward pass."""
        if not tf.config.list_logical_devices("GPU"):
            return (*self._moments, tf.zeros([0]))
        forward = tf.raw_ops.FusedBatchNormV3(  # There it is cuDNN's own.
            x=x,
            scale=self._gamma,
            offset=tf.zeros_like(self._gamma),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            **self._settings,
        )
        return forward[-3:]

    def input_gradient(self, gradient: tf.Tensor) -> tf.Tensor:
        """Returns dL/dx for dL/ds."""
        x = self._images(self._x)
        mean, variance, more = self._saved(x)
        found = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=self._images(gradient),
            x=x,
            scale=self._gamma,
            reserve_space_1=mean,
            reserve_space_2=variance,
            reserve_space_3=more,
            **self._settings,
        )
        return tf.reshape(found.x_backprop, tf.shape(self._x))
