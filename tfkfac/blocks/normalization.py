"""Blocks of normalization layers: per-example gradients of scale and shift."""

import abc
import math

import keras
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.blocks.base import LayerCall, Moment
from tfkfac.blocks.factored import FactoredBlock
from tfkfac.factors import DenseFactor, DiagonalFactor, Factor
from tfkfac.keras_compat import keras_mask


class ScaleShiftBlock(FactoredBlock):
    """s = gamma xhat + beta: F = (1 / N) sum_i p_i p_i^T over examples i.

        p_i = (sum_t g_it xhat_it, sum_t g_it),    U = (F + lambda I)^-1 V

    the sums over positions t (Osawa et al. 2019, section 5.4). `curvature`
    says how much of F is kept: "diagonal"; "unitwise", a 2 x 2 block for each
    channel; "full", all scales before all shifts.

    lambda is `norm_damping`, or the damping; it is not split.
    """

    damping = "norm_damping"

    def __init__(self, layer, *, curvature: str):
        super().__init__(layer)
        both = [getattr(layer, "gamma", None), getattr(layer, "beta", None)]
        self._used = [v is not None and v.trainable for v in both]
        self.variables = [v for v, used in zip(both, self._used) if used]
        self.channels = math.prod(self.variables[0].shape)
        self._keep(curvature)

    def _keep(self, curvature: str) -> None:
        """Sets how much of F is kept."""
        self.curvature = curvature
        n = len(self.variables)
        factor: Factor
        if curvature == "unitwise":
            factor = DenseFactor(
                "factor", self.channels, n, rows_are_terms=True
            )
        else:
            kind: type[Factor] = DenseFactor
            if curvature == "diagonal":
                kind = DiagonalFactor
            factor = kind("factor", 1, n * self.channels, rows_are_terms=True)
        self.factors = [factor]

    def limit_factors(self, size):
        if self.factors[0].dim > size:
            self._keep("diagonal")

    @classmethod
    def for_layer(cls, layer, options):
        return [cls(layer, curvature=options["norm_curvature"])]

    @classmethod
    def record(cls, layer, call, keep, inputs, args, options):
        s = call(inputs, *args, **options)
        names = ("training", "mask")
        options = {**dict(zip(names, args)), **options}
        return keep(
            LayerCall(layer, inputs, keras_mask(inputs), s, options=options)
        )

    def normalized(self, use: LayerCall) -> tf.Tensor:
        """Returns xhat, in the shape of the inputs, without side effects.

        A subclass has this or `scale_gradients`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} needs `normalized` or `scale_gradients`."
        )

    def scale_gradients(self, use: LayerCall, g: tf.Tensor) -> tf.Tensor:
        """Returns sum_t g_it xhat_it, [batch, channels].

        Args:
            use: Of the layer.
            g: The gradients, in the shape of the inputs.
        """
        return self._per_example(g * tf.cast(self.normalized(use), g.dtype))

    @abc.abstractmethod
    def channel_axes(self, rank: int) -> list[int]:
        """Returns the axes of the inputs that gamma has."""

    def _per_example(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the sum over positions, [batch, channels]."""
        kept = [a % x.shape.rank for a in self.channel_axes(x.shape.rank)]
        axes = [a for a in range(1, x.shape.rank) if a not in kept]
        if 0 in kept:
            raise ValueError(
                f"{self.layer.name}: normalizes over the batch axis, for which "
                "there is no curvature; name the layer in skip=."
            )
        sums = tf.reduce_sum(x, axis=axes)
        if len(kept) == 1:
            return sums
        return tf.reshape(sums, [-1, self.channels])

    def moments(self, uses, product_dtype, dtype):
        moments = []
        for use in uses:
            g = tf.cast(use.gradient, dtype)
            if use.mask is not None:
                mask = tf.cast(use.mask, dtype)
                ones = [1] * (g.shape.rank - mask.shape.rank)
                shape = tf.concat([tf.shape(mask), ones], axis=0)
                g *= tf.reshape(mask, shape)
            parts = []
            if self._used[0]:
                parts.append(self.scale_gradients(use, g))
            if self._used[1]:
                parts.append(self._per_example(g))
            rows = tf.cast(tf.shape(parts[0])[0], dtype)
            total = use.times_square_of_scale(self._second_moment(parts))
            moments.append(Moment(total, rows))
        return [Moment.sum(moments)]

    def _second_moment(self, parts):
        """Returns sum_i p_i p_i^T for p in parts, each [batch, channels]."""
        if self.curvature == "unitwise":
            p = tf.stack(parts, axis=-1)  # [batch, channels, n]
            return tf.einsum("bci,bcj->cij", p, p)
        p = tf.concat(parts, axis=-1)
        if self.factors[0].diagonal:
            return tf.reduce_sum(tf.square(p), axis=0, keepdims=True)
        return tf.expand_dims(tf.matmul(p, p, transpose_a=True), 0)

    def to_matrix(self, gradients):
        if self.curvature == "unitwise":
            flat = [tf.reshape(g, [self.channels, 1]) for g in gradients]
            return tf.stack(flat, axis=1)
        flat = [tf.reshape(g, [1, self.channels, 1]) for g in gradients]
        return tf.concat(flat, axis=1)

    def from_matrix(self, matrix):
        parts = tf.split(matrix, len(self.variables), axis=1)
        return [tf.reshape(f, v.shape) for f, v in zip(parts, self.variables)]


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
            _widen(use.inputs),
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
        return keras_compat.group_normalized(self.layer, _widen(use.inputs))


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


def _widen(x: tf.Tensor) -> tf.Tensor:
    return x if x.dtype.size > 4 else tf.cast(x, tf.float32)
