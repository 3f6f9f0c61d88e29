"""What this package takes of Keras that is not public, in one place."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import keras
import tensorflow as tf


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


def cells(layer: keras.layers.RNN) -> list[Any]:
    """Returns the cells of a recurrent layer, from the inputs on."""
    cell = layer.cell
    stacked = type(cell) is keras.layers.StackedRNNCells
    return list(cell.cells) if stacked else [cell]


def has_stock_loop(layer: keras.layers.RNN) -> bool:
    """Whether a recurrent layer goes over the steps as Keras' own do."""
    layers = keras.layers
    stock = (layers.RNN, layers.SimpleRNN, layers.LSTM, layers.GRU)
    return any(type(layer).inner_loop is x.inner_loop for x in stock)


def initial_states(
    layer: keras.layers.RNN, sequences: tf.Tensor, options: dict
) -> list[Any]:
    """Returns the states that a call of a recurrent layer will start from,
    nested as those of its cells.

    Args:
        layer: The layer.
        sequences: Its inputs.
        options: The keyword arguments of its `call`.
    """
    states = options.get("initial_state")
    if states is None and layer.stateful:
        states = layer.states
    if states is None:
        states = layer.get_initial_state(batch_size=tf.shape(sequences)[0])
    if not keras.tree.is_nested(states):
        states = [states]
    dtype = layer.cell.compute_dtype
    return keras.tree.map_structure(
        lambda x: tf.identity(keras.ops.convert_to_tensor(x, dtype)),
        list(states),
    )


def dropout_masks(
    layer: keras.layers.RNN, sequences: tf.Tensor, states: list[Any]
) -> list[list[list[tf.Tensor]]]:
    """Draws the dropout that the next call of a recurrent layer will take.

    Returns, for each cell, that of its inputs and that of its states: no
    tensor, one, or one for each gate.
    """
    layer._maybe_config_dropout_masks(layer.cell, sequences[:, 0, :], states)

    def drawn(cell, name):
        masks = getattr(cell, name, None)
        if masks is None:
            return []
        return list(masks) if isinstance(masks, list) else [masks]

    names = "_dropout_mask", "_recurrent_dropout_mask"
    return [[drawn(cell, name) for name in names] for cell in cells(layer)]
