"""Constraints and regularizers of kernels, set on models as they are."""

import math
from collections.abc import Iterator

import keras
from keras import layers, ops

import tfkfac

_WITH_KERNEL = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)


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


def enforce(model: keras.Model) -> None:
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
