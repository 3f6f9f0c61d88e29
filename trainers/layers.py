"""Layers of the trainers' models, with the curvature of their normalization;
regularizers and constraints of kernels, set on models as they are."""

import math
from collections.abc import Iterator

import keras
import tensorflow as tf
from keras import ops

import tfkfac
from tfkfac import blocks

NORMALIZATIONS = ("batch", "ghost", "none")


def normalize(x, kind: str, name: str):
    """Returns x, a tensor of a functional model, after a normalization layer.

    Args:
        x: The tensor, channels last.
        kind: "batch"; "ghost", batch normalization by groups of 32 examples;
            "none" returns x as it is.
        name: The name of the layer.

    Raises:
        ValueError: No such kind.
    """
    if kind not in NORMALIZATIONS:
        raise ValueError(
            f"normalization={kind!r}: must be one of {NORMALIZATIONS}."
        )
    if kind == "none":
        return x
    cls = (
        GhostBatchNormalization
        if kind == "ghost"
        else keras.layers.BatchNormalization
    )
    return cls(momentum=0.9, epsilon=1e-5, name=name)(x)


@keras.saving.register_keras_serializable(package="trainers")
class GhostBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization within groups of examples (Hoffer et al. 2017).

    In training, `virtual_batch_size` successive examples at a time are
    normalized by their own mean and variance, so that the objective does not
    depend on the batch size. The moving statistics, which inference uses, take
    the means of these over the groups, once a call.

    Args:
        virtual_batch_size: The examples in a group; it divides the batch.
        **kwargs: As of `keras.layers.BatchNormalization`, without `renorm` and
            `synchronized`.

    Raises:
        ValueError: An argument that this layer does not have, a batch that is
            not a multiple of the group, or masked inputs in training.
    """

    def __init__(self, *, virtual_batch_size: int = 32, **kwargs):
        super().__init__(**kwargs)
        for name in ("renorm", "synchronized"):
            if getattr(self, name):
                raise ValueError(
                    f"{self.name}: GhostBatchNormalization has no {name}."
                )
        if virtual_batch_size < 1:
            raise ValueError(
                f"{self.name}: virtual_batch_size={virtual_batch_size} must be "
                "positive."
            )
        self.virtual_batch_size = int(virtual_batch_size)

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable):
            return super().call(inputs, training=False)
        if mask is not None:
            raise ValueError(
                f"{self.name}: GhostBatchNormalization takes no masked inputs "
                "in training; use keras.layers.LayerNormalization there."
            )
        x, mean, variance = self.normalize(inputs)
        for moving, value in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            old = ops.cast(moving, value.dtype)
            moving.assign(self.momentum * old + (1.0 - self.momentum) * value)
        shape = [1] * len(inputs.shape)
        shape[self.axis] = -1
        if self.scale:
            x *= ops.reshape(ops.cast(self.gamma, x.dtype), shape)
        if self.center:
            x += ops.reshape(ops.cast(self.beta, x.dtype), shape)
        return ops.cast(x, self.compute_dtype)

    def normalize(self, inputs):
        """Returns (xhat, mean, variance), without side effects.

        xhat has the shape of the inputs; mean and variance, [channels], are
        those of the groups, averaged over the groups.
        """
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        x = ops.cast(self._whole_groups(inputs), dtype)
        shape = ops.shape(x)
        groups = ops.reshape(x, (-1, self.virtual_batch_size, *shape[1:]))
        channels = self.axis % len(x.shape) + 1
        axes = [a for a in range(1, len(groups.shape)) if a != channels]
        mean, variance = ops.moments(groups, axes, keepdims=True)
        xhat = (groups - mean) * ops.rsqrt(variance + self.epsilon)
        return (
            ops.reshape(xhat, shape),
            ops.reshape(ops.mean(mean, axis=0), [-1]),
            ops.reshape(ops.mean(variance, axis=0), [-1]),
        )

    def _whole_groups(self, x):
        """Returns x; raises if its batch is not a multiple of the group."""
        size = self.virtual_batch_size
        message = (
            f"{self.name}: the batch must be a multiple of "
            f"virtual_batch_size={size}; drop the remainder of the data set, "
            "or choose another size"
        )
        if x.shape[0] is not None:
            if x.shape[0] % size:
                raise ValueError(f"{message}: it has {x.shape[0]} examples.")
            return x
        remainder = tf.shape(x)[0] % size
        check = tf.debugging.assert_equal(remainder, 0, message)
        with tf.control_dependencies([check]):
            return tf.identity(x)

    def get_config(self):
        config = super().get_config()
        for name in ("renorm", "renorm_clipping", "renorm_momentum"):
            del config[name]
        del config["synchronized"]
        return {**config, "virtual_batch_size": self.virtual_batch_size}


class GhostBatchNormalizationBlock(blocks.ScaleShiftBlock):
    """`GhostBatchNormalization`."""

    def channel_axes(self, rank):
        return [self.layer.axis]

    def normalized(self, use):
        layer = self.layer
        if use.options.get("training") and layer.trainable:
            return layer.normalize(use.inputs)[0]
        dtype = keras.backend.result_type(use.inputs.dtype, "float32")
        return ops.batch_normalization(
            ops.cast(use.inputs, dtype),
            ops.cast(layer.moving_mean, dtype),
            ops.cast(layer.moving_variance, dtype),
            axis=layer.axis,
            epsilon=layer.epsilon,
        )


tfkfac.register(GhostBatchNormalization, GhostBatchNormalizationBlock)


@keras.saving.register_keras_serializable(package="trainers")
class SinusoidalPositions(keras.layers.Layer):
    """scale x + P, with P of the positions t (Vaswani et al. 2017, 3.5).

        P[t, 2i] = sin(t / 10000^(2i / d)),  P[t, 2i + 1] = cos(the same)

    for inputs x of shape [batch, time, d]. It has no weights.

    Args:
        scale: What the inputs are multiplied by.
    """

    def __init__(self, *, scale: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = float(scale)
        self.supports_masking = True

    def build(self, input_shape):
        if input_shape[-1] % 2:
            raise ValueError(
                f"{self.name}: the last axis must be even, not "
                f"{input_shape[-1]}."
            )

    def call(self, inputs):
        _, time, d = ops.shape(inputs)
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        t = ops.arange(time, dtype=dtype)
        i = ops.arange(d // 2, dtype=dtype)
        angles = t[:, None] * ops.power(10000.0, -2.0 * i / d)
        P = ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1)
        P = ops.cast(ops.reshape(P, (time, d)), inputs.dtype)
        return self.scale * inputs + P

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable(package="trainers")
class MaskLike(keras.layers.Layer):
    """Gives the first of its two inputs the Keras mask of the second."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs):
        return inputs[0]

    def compute_mask(self, inputs, previous_mask):
        return previous_mask[1]


_WITH_KERNEL = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)


def _layers_with_kernels(model: keras.Model) -> Iterator[keras.Layer]:
    return (
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, _WITH_KERNEL)
    )


def regularize(model: keras.Model, weight_decay: float) -> None:
    """Adds weight_decay / 2 |w|^2 to the loss for each kernel w.

    Its gradient is weight_decay w, which goes through the preconditioner and
    the momentum; decoupled weight decay goes past them.
    """
    for layer in _layers_with_kernels(model):
        layer.kernel_regularizer = keras.regularizers.L2(weight_decay / 2)
        layer.kernel.regularizer = layer.kernel_regularizer


def enforce_constraints(model: keras.Model) -> None:
    """Applies the constraints to the weights as they are.

    Keras does so after updates alone.
    """
    for variable in model.trainable_variables:
        if variable.constraint is not None:
            variable.assign(variable.constraint(variable))


def rescale(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    """Has each kernel of dense and convolution layers keep its norm.

    With a `KFAC`, built, the momentum w(t) - w(t-1) of Osawa et al. 2019,
    equation 17, is that of the weights after the rescaling; the paper leaves
    this open.
    """
    for layer in _layers_with_kernels(model):
        momentum = None
        if isinstance(optimizer, tfkfac.KFAC):
            index = optimizer._get_variable_index(layer.kernel)
            momentum = optimizer.momenta[index]
        layer.kernel_constraint = RescaledNorm(momentum)
        layer.kernel.constraint = layer.kernel_constraint


@keras.saving.register_keras_serializable(package="trainers")
class RescaledNorm(keras.constraints.Constraint):
    """w <- sqrt(2 d_out) w / (|w| + 1e-9)  (Osawa et al. 2019, equation 18).

    d_out is the length of the last axis of the kernel w, |w| its Frobenius
    norm.

    Args:
        momentum: A variable that holds the change of w by the update before
            this, and to which that by the rescaling is added; None for none.
            It is not saved with the layer.
    """

    def __init__(self, momentum: keras.Variable | None = None):
        self._momentum = momentum

    def __call__(self, w):
        w = ops.convert_to_tensor(w)
        norm = ops.sqrt(ops.sum(ops.square(w)))
        scaled = w * (math.sqrt(2 * w.shape[-1]) / (norm + 1e-9))
        if self._momentum is not None:
            change = ops.cast(scaled - w, self._momentum.dtype)
            self._momentum.assign_add(change)
        return scaled
