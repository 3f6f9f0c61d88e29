"""Blocks of normalization layers: per-example gradients of scale and shift."""

import abc
import math

import keras
import tensorflow as tf

from tfkfac.blocks.base import Moment, Use, keras_mask
from tfkfac.blocks.factored import FactoredBlock
from tfkfac.factors import DenseFactor, DiagonalFactor


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
        if curvature == "unitwise":
            factor = DenseFactor(
                "factor", self.channels, n, rows_are_terms=True
            )
        else:
            kind = DiagonalFactor if curvature == "diagonal" else DenseFactor
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
        use = Use(layer, inputs, keras_mask(inputs), s, options=options)
        use.shortcut = cls.shortcut(use)
        return keep(use)

    @classmethod
    def shortcut(cls, use: Use):
        """Returns what `Use.shortcut` is."""
        del use
        return None

    @abc.abstractmethod
    def normalized(self, use: Use) -> tf.Tensor:
        """Returns xhat, in the shape of the inputs, without side effects."""

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
            g = tf.cast(use.raw_gradient, dtype)
            if use.mask is not None:
                mask = tf.cast(use.mask, dtype)
                ones = [1] * (g.shape.rank - mask.shape.rank)
                shape = tf.concat([tf.shape(mask), ones], axis=0)
                g *= tf.reshape(mask, shape)
            parts = []
            if self._used[0]:
                xhat = tf.cast(self.normalized(use), dtype)
                parts.append(self._per_example(g * xhat))
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
    def shortcut(cls, use):
        layer, x = use.layer, use.inputs
        last = layer.axis % x.shape.rank == x.shape.rank - 1
        fused = last and x.dtype == use.pre_activation.dtype == tf.float32
        if not (fused and use.options.get("training") and layer.trainable):
            return None
        stock = keras.layers.BatchNormalization
        if type(layer)._moments is not stock._moments:
            return None
        if use.options.get("mask") is not None:
            return None
        return _FusedNormalization(layer, x)

    def normalized(self, use):
        if use.shortcut is not None:
            return use.shortcut.normalized()
        layer, x = self.layer, _widen(use.inputs)
        if use.options.get("training") and layer.trainable:
            mean, variance = layer._moments(x, use.options.get("mask"))
        else:
            mean, variance = layer.moving_mean, layer.moving_variance
        return keras.ops.batch_normalization(
            x, mean, variance, axis=layer.axis, epsilon=layer.epsilon
        )


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
        layer, x = self.layer, _widen(use.inputs)
        saved = layer.scale, layer.center
        layer.__dict__.update(scale=False, center=False)
        try:
            groups = layer._reshape_into_groups(x)
            xhat = layer._apply_normalization(groups, x.shape)
        finally:
            layer.__dict__.update(scale=saved[0], center=saved[1])
        return tf.reshape(xhat, tf.shape(x))


class _FusedNormalization:
    """Batch normalization by the last axis, one operation each way.

    Keras' own is a dozen, which take four times as long on a CPU.

    Args:
        layer: A `keras.layers.BatchNormalization`, in training.
        x: Its inputs, float32.
    """

    def __init__(self, layer: keras.layers.Layer, x: tf.Tensor):
        self._x, channels = x, x.shape[-1]
        # As the forward pass takes it: another optimizer may move it first.
        gamma = layer.gamma
        self._gamma = (
            tf.ones([channels]) if gamma is None else tf.identity(gamma.value)
        )
        self._settings = {"epsilon": layer.epsilon, "is_training": True}
        self._forward = None

    def _images(self, x):
        """Returns x with four axes."""
        if x.shape.rank == 4:
            return x
        return tf.reshape(x, [-1, 1, 1, self._x.shape[-1]])

    def _run(self):
        """Returns xhat, images, and what the gradient takes of it."""
        if self._forward is None:
            channels = self._x.shape[-1]
            self._forward = tf.raw_ops.FusedBatchNormV3(
                x=self._images(self._x),
                scale=tf.ones([channels]),
                offset=tf.zeros([channels]),
                mean=tf.zeros([0]),
                variance=tf.zeros([0]),
                **self._settings,
            )
        return self._forward

    def normalized(self) -> tf.Tensor:
        """Returns xhat = (x - mean) / sqrt(variance + epsilon)."""
        return tf.reshape(self._run().y, tf.shape(self._x))

    def input_gradient(self, gradient: tf.Tensor) -> tf.Tensor:
        """Returns dL/dx for dL/ds."""
        forward = self._run()
        found = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=self._images(gradient),
            x=self._images(self._x),
            scale=self._gamma,
            reserve_space_1=forward.reserve_space_1,
            reserve_space_2=forward.reserve_space_2,
            reserve_space_3=forward.reserve_space_3,
            **self._settings,
        )
        return tf.reshape(found.x_backprop, tf.shape(self._x))


def _widen(x: tf.Tensor) -> tf.Tensor:
    return x if x.dtype.size > 4 else tf.cast(x, tf.float32)
