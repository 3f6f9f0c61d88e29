"""What this package takes of Keras that is not public, in one place."""

import sys
from collections.abc import Callable

import keras


def callers(function: Callable) -> "list":
    """Returns the `self` of the calls of a method that this is within."""
    code, found = function.__code__, []
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is code:
            found.append(frame.f_locals.get("self"))
        frame = frame.f_back
    return found


def is_in_stock_train_step(model: keras.Model) -> bool:
    """Whether this is within Keras' own training step of a model, which adds
    nothing to the loss that Keras computes."""
    stock = keras.Model
    if "compute_loss" in model.__dict__ or (
        type(model).compute_loss is not stock.compute_loss
    ):
        return False
    return any(self is model for self in callers(stock.train_step))


def loss_scaling_around(
    optimizer: keras.optimizers.Optimizer,
) -> keras.optimizers.LossScaleOptimizer | None:
    """Returns the `LossScaleOptimizer` whose `apply` called the optimizer's."""
    scaling = keras.optimizers.LossScaleOptimizer
    for outer in callers(scaling.apply):
        if getattr(outer, "inner_optimizer", None) is optimizer:
            return outer
    return None


def symbolic_input_shapes(layer: keras.layers.Layer) -> list[tuple]:
    """Returns the shapes of a layer's inputs in functional models, by call.

    There are none where the layer is called in `call` of a subclass alone.
    """
    return [
        tensor.shape
        for node in layer._inbound_nodes
        for tensor in node.input_tensors[:1]
    ]
