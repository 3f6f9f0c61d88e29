"""A call of a recurrent layer over time once more: the rows of its kernels."""

import dataclasses

import keras
import tensorflow as tf

from tfkfac.recurrence import calls
from tfkfac.recurrence.calls import RecurrentCall
from tfkfac.recurrence.cells import cell_type
from tfkfac.recurrence.loops import Recurrence


@dataclasses.dataclass
class Rows:
    """What a kernel of a cell saw, [steps, batch, ...].

    Attributes:
        inputs: What it was multiplied by, for each gate.
        gradients: At the products, all columns.
    """

    inputs: list[tf.Tensor]
    gradients: tf.Tensor


def rows(
    layer: keras.layers.RNN,
    call: RecurrentCall,
    inputs: tf.Tensor,
    output_gradients: list[tf.Tensor],
    dtype: tf.DType,
) -> list[tuple[Rows, Rows]]:
    """Returns the rows of kernel and recurrent kernel of each cell.

    Args:
        layer: The layer.
        call: What the call went by.
        inputs: Of the call, [batch, steps, features].
        output_gradients: At what the call returned, flat.
        dtype: The type to run in.
    """
    cells = [
        cell_type(cell)(cell, weights.cast(dtype))
        for cell, weights in zip(calls.cells_of(layer), call.weights)
    ]
    x = by_step(layer, tf.cast(inputs, dtype))
    states = [tf.cast(state, dtype) for state in call.states]
    mask = None
    if call.mask is not None:
        mask = mask_by_step(layer, call.mask, x)[..., tf.newaxis]
    first, *of_states = [tf.cast(g, dtype) for g in output_gradients]
    if layer.return_sequences:  # They come in the order of the steps.
        first = tf.transpose(first, [1, 0, 2])
    else:
        before = [tf.shape(x)[0] - 1, 0]
        first = tf.pad(first[tf.newaxis], [before, [0, 0], [0, 0]])
    traces = Recurrence(cells, mask, layer.zero_output_for_mask).backpropagate(
        x, states, first, of_states or [tf.zeros_like(s) for s in states]
    )
    return [
        (
            Rows(cell.input_rows(trace.x), trace.g),
            Rows(*cell.recurrent_rows(trace.s, trace.h, trace.g)),
        )
        for cell, trace in zip(cells, traces)
    ]


def by_step(layer: keras.layers.RNN, x: tf.Tensor) -> tf.Tensor:
    """Returns [batch, steps, ...] as [steps, batch, ...], as it is read."""
    x = tf.transpose(x, [1, 0, *range(2, x.shape.rank)])
    return tf.reverse(x, [0]) if layer.go_backwards else x


def mask_by_step(
    layer: keras.layers.RNN, mask: tf.Tensor, x: tf.Tensor
) -> tf.Tensor:
    """Returns a mask of [batch, steps] or of [batch] as [steps, batch].

    Args:
        layer: The layer.
        mask: The mask.
        x: What begins with the axes of the result.
    """
    steps, batch = tf.unstack(tf.shape(x)[:2])
    mask = tf.reshape(tf.cast(mask, tf.bool), [batch, -1])
    return by_step(layer, tf.broadcast_to(mask, [batch, steps]))
