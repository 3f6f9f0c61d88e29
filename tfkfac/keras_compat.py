"""What this package takes of Keras that is not public, in one place."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import keras


def callers(function: Callable) -> list[Any]:
    """Returns the `self` of the calls of a method that this is within."""
    code, found = function.__code__, []
    frame: FrameType | None = sys._getframe(1)
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


def keep_xla_away(model: keras.Model, ranks: int) -> None:
    """Keeps XLA away from collectives, which it cannot compile.

    Args:
        model: The model; jit_compile="auto" is turned off when it is trained.
        ranks: How many there are, for the message.
    """
    original = model.make_train_function

    def make_train_function(force=False):
        if model.jit_compile:
            if model.get_compile_config()["jit_compile"] is True:
                raise ValueError(
                    f"{model.name!r} was compiled with jit_compile=True, and "
                    f"this is one of {ranks} processes: XLA cannot compile "
                    "Horovod's collectives. Compile it with jit_compile=False."
                )
            model.jit_compile = False
        return original(force)

    model.__dict__["make_train_function"] = make_train_function


def symbolic_input_shapes(layer: keras.layers.Layer) -> list[tuple]:
    """Returns the shapes of a layer's inputs in functional models, by call.

    There are none where the layer is called in `call` of a subclass alone.
    """
    return [
        tensor.shape
        for node in layer._inbound_nodes
        for tensor in node.input_tensors[:1]
    ]
