"""A call of a recurrent layer over time once more: the rows of its kernels."""

import dataclasses

import keras
import tensorflow as tf

from tfkfac.recurrence import calls
from tfkfac.recurrence.calls import RecurrentCall
from tfkfac.recurrence.cells import cell_type, channels_last
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
        inputs: Of the call, [batch, steps, ...].
        output_gradients: At what the call returned, flat.
        dtype: The type to run in.
    """
    cells = [
        cell_type(cell)(cell, weights.cast(dtype))
        for cell, weights in zip(calls.cells_of(layer), call.weights)
    ]
    x = channels_last(layer.cell, tf.cast(inputs, dtype), 2)
    x = by_step(layer, x)
    states, of_states = (
        [channels_last(layer.cell, tf.cast(v, dtype), 1) for v in tensors]
        for tensors in (call.states, output_gradients[1:])
    )
    mask = None
    if call.mask is not None:
        mask = mask_by_step(layer, call.mask, x)
        ones = states[0].shape.rank + 1 - mask.shape.rank
        mask = mask[(..., *[tf.newaxis] * ones)]
    first = tf.cast(output_gradients[0], dtype)
    first = channels_last(layer.cell, first, 1 + layer.return_sequences)
    if layer.return_sequences:  # They come in the order of the steps.
        first = _batch_second(first)
    else:
        pads = [[tf.shape(x)[0] - 1, 0]] + [[0, 0]] * first.shape.rank
        first = tf.pad(first[tf.newaxis], pads)
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
    x = _batch_second(x)
    return tf.reverse(x, [0]) if layer.go_backwards else x


def _batch_second(x):
    """Exchanges the first two axes."""
    return tf.transpose(x, [1, 0, *range(2, x.shape.rank)])


def mask_by_step(
    layer: keras.layers.RNN, mask: tf.Tensor, x: tf.Tensor
) -> tf.Tensor:
    """Returns a mask of [batch, steps] or of [batch] as [steps, batch].

    One of positions, [batch, steps, *space], is returned as
    [steps, batch, *space].

    Args:
        layer: The layer.
        mask: The mask.
        x: What begins with the axes of the result.
    """
    mask = tf.cast(mask, tf.bool)
    if mask.shape.rank == x.shape.rank - 1 > 2:
        return by_step(layer, mask)
    steps, batch = tf.unstack(tf.shape(x)[:2])
    mask = tf.reshape(mask, [batch, -1])
    return by_step(layer, tf.broadcast_to(mask, [batch, steps]))
