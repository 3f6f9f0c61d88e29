"""Blocks of elementwise scales and shifts: gradients for each example."""

import abc
import math
from collections.abc import Sequence

import keras
import tensorflow as tf

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

    Args:
        layer: A built layer.
        curvature: How much of F is kept.
        weights: The variables of the scale and of the shift, None for one that
            there is not; by default `gamma` and `beta` of the layer.
    """

    damping = "norm_damping"

    def __init__(
        self,
        layer: keras.layers.Layer,
        *,
        curvature: str,
        weights: Sequence[keras.Variable | None] | None = None,
    ):
        super().__init__(layer)
        both = weights
        if both is None:
            names = "gamma", "beta"
            both = [getattr(layer, name, None) for name in names]
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


class RMSNormalizationBlock(ScaleShiftBlock):
    """`keras.layers.RMSNormalization`: it has no shift."""

    @classmethod
    def for_layer(cls, layer, options):
        weights = layer.scale, None
        return [
            cls(layer, curvature=options["norm_curvature"], weights=weights)
        ]

    def channel_axes(self, rank):
        return list(self.layer.axis)

    def normalized(self, use):
        return keras.ops.rms_normalization(
            widened(use.inputs),
            axis=self.layer.axis,
            epsilon=self.layer.epsilon,
        )


class PReLUBlock(ScaleShiftBlock):
    """`keras.layers.PReLU`: s = max(x, 0) + alpha min(x, 0).

    alpha scales min(x, 0), at all positions along the shared axes. Of F the
    diagonal is kept: without shared axes alpha is as large as an example.
    """

    @classmethod
    def for_layer(cls, layer, options):
        del options
        return [cls(layer, curvature="diagonal", weights=(layer.alpha, None))]

    def channel_axes(self, rank):
        shared = self.layer.shared_axes or ()
        return [axis for axis in range(1, rank) if axis not in shared]

    def normalized(self, use):
        return tf.minimum(use.inputs, 0)


def widened(x: tf.Tensor) -> tf.Tensor:
    """Returns x in float32, if it is of half precision."""
    return x if x.dtype.size > 4 else tf.cast(x, tf.float32)
