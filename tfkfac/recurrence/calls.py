"""What a call of a recurrent layer goes by, and what it returns."""

import dataclasses

import keras
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.recurrence.cells import Weights


@dataclasses.dataclass(frozen=True)
class RecurrentCall:
    """What a call of a recurrent layer went by, besides its inputs.

    Attributes:
        weights: Those of each cell.
        states: Those at the start, of all cells in order.
        mask: That of the layer, [batch, steps] or, of a recurrent convolution,
            [batch, steps, *space]; or None.
    """

    weights: list[Weights]
    states: list[tf.Tensor]
    mask: tf.Tensor | None


def cells_of(layer: keras.layers.RNN) -> list[keras.layers.Layer]:
    """Returns the cells of a recurrent layer, from the inputs on."""
    cell = layer.cell
    stacked = type(cell) is keras.layers.StackedRNNCells
    return list(cell.cells) if stacked else [cell]


def has_stock_loop(layer: keras.layers.RNN) -> bool:
    """Whether a recurrent layer goes over the steps as Keras' own do."""
    layers = keras.layers
    stock = (layers.RNN, layers.SimpleRNN, layers.LSTM, layers.GRU)
    return any(type(layer).inner_loop is x.inner_loop for x in stock)


def note(
    layer: keras.layers.RNN, sequences: tf.Tensor, options: dict
) -> RecurrentCall:
    """Returns what the next call of a layer will go by.

    It draws what that drops: Keras draws it once for a call.

    Args:
        layer: The layer.
        sequences: Its inputs.
        options: The keyword arguments of its `call`.
    """
    states = _initial_states(layer, sequences, options.get("initial_state"))
    keras_compat.draw_dropout(layer, sequences, states)
    weights = []
    for cell in cells_of(layer):
        W, R, b = (
            None if v is None else tf.cast(v.value, cell.compute_dtype)
            for v in (cell.kernel, cell.recurrent_kernel, cell.bias)
        )
        drops = options.get("training")
        dropout = keras_compat.drawn_dropout(cell) if drops else ((), ())
        weights.append(Weights(W, R, b, *dropout))
    mask = options.get("mask")
    if isinstance(mask, (list, tuple)):  # Given states have one, too.
        mask = mask[0]
    first = getattr(layer.cell, "data_format", None) == "channels_first"
    if first and mask is not None and len(mask.shape) > 2:
        raise ValueError(
            f"{layer.name}: a mask of {mask.shape} with channels first: Keras "
            "takes its axes for those of the channels. Give it one of "
            "[batch, steps], or the channels last."
        )
    return RecurrentCall(weights, keras.tree.flatten(states), mask)


def _initial_states(layer, sequences, states) -> list:
    """Returns the states before the call, nested as those of the cells."""
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


def shapes_of(outputs) -> list[tf.Tensor]:
    """Returns the shapes of what a call returned, flat."""
    return [tf.shape(y) for y in keras.tree.flatten(outputs)]


def joined(outputs) -> tf.Tensor:
    """Returns what a call returned as one tensor: if several, [batch, all]."""
    first, *others = keras.tree.flatten(outputs)
    if not others:
        return first
    flat = [tf.reshape(y, [tf.shape(y)[0], -1]) for y in (first, *others)]
    return tf.concat(flat, axis=1)


def separated(tensor: tf.Tensor, shapes: list[tf.Tensor]) -> list[tf.Tensor]:
    """Undoes `joined`, given the shapes."""
    if len(shapes) == 1:
        return [tensor]
    sizes = tf.stack([tf.reduce_prod(shape[1:]) for shape in shapes])
    parts = tf.split(tensor, sizes, axis=1, num=len(shapes))
    return [tf.reshape(part, shape) for part, shape in zip(parts, shapes)]


def separated_as(tensor: tf.Tensor, outputs):
    """Undoes `joined`, nested as what a call returned."""
    flat = keras.tree.flatten(outputs)
    parts = separated(tensor, shapes_of(outputs))
    for part, old in zip(parts, flat):
        part.set_shape(old.shape)
    return keras.tree.pack_sequence_as(outputs, parts)
