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
        mask = keras_mask(inputs)
        return keep(Use(layer, inputs, mask, s, options=options))

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
        return tf.reshape(tf.reduce_sum(x, axis=axes), [-1, self.channels])

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
                xhat = tf.cast(self.normalized(use), dtype)
                parts.append(self._per_example(g * xhat))
            if self._used[1]:
                parts.append(self._per_example(g))
            rows = tf.cast(tf.shape(parts[0])[0], dtype)
            moments.append(Moment(self._second_moment(parts), rows))
        return [Moment.sum(moments)]

    def _second_moment(self, parts):
        """Returns sum_i p_i p_i^T for p in parts, each [batch, channels]."""
        if self.curvature == "unitwise":
            p = tf.stack(parts, axis=-1)  # [batch, channels, n]
            return tf.einsum("bci,bcj->cij", p, p)
        p = tf.concat(parts, axis=-1)
        if self.factors[0].diagonal:
            return tf.reduce_sum(tf.square(p), axis=0)[tf.newaxis]
        return tf.matmul(p, p, transpose_a=True)[tf.newaxis]

    def to_matrix(self, gradients):
        flat = [tf.reshape(g, [self.channels]) for g in gradients]
        if self.curvature == "unitwise":
            return tf.stack(flat, axis=-1)[:, :, tf.newaxis]
        return tf.concat(flat, axis=0)[tf.newaxis, :, tf.newaxis]

    def from_matrix(self, matrix):
        n = len(self.variables)
        if self.curvature == "unitwise":
            flat = tf.unstack(matrix[:, :, 0], axis=-1)
        else:
            flat = tf.split(matrix[0, :, 0], n)
        return [tf.reshape(f, v.shape) for f, v in zip(flat, self.variables)]


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

    def normalized(self, use):
        layer = self.layer
        x, mask = _widen(use.inputs), use.options.get("mask")
        if use.options.get("training") and layer.trainable:
            last = layer.axis % x.shape.rank == x.shape.rank - 1
            if mask is None and last and x.dtype == tf.float32:
                return _normalize_channels(x, layer.epsilon)
            mean, variance = layer._moments(x, mask)
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


def _normalize_channels(x: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Returns (x - mean) / sqrt(variance + epsilon) by channels, in one go."""
    channels = x.shape[-1]
    nothing = tf.zeros([0], x.dtype)
    xhat, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tf.reshape(x, [-1, 1, 1, channels]) if x.shape.rank != 4 else x,
        scale=tf.ones([channels], x.dtype),
        offset=tf.zeros([channels], x.dtype),
        mean=nothing,
        variance=nothing,
        epsilon=epsilon,
        is_training=True,
    )
    return tf.reshape(xhat, tf.shape(x))


def _widen(x: tf.Tensor) -> tf.Tensor:
    return x if x.dtype.size > 4 else tf.cast(x, tf.float32)
