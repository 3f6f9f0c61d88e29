"""Recurrent layers over time: their states, gradients at pre-activations.

Time is the first axis here, and goes the way that the layer goes.
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tfkfac.recurrence.cells import Cell


@dataclasses.dataclass
class Trace:
    """What a cell saw in all steps, [steps, batch, ...].

    Attributes:
        x: Its inputs.
        h: The first of its states before the steps.
        s: The pre-activations W^T x + b.
        g: The gradients at s.
    """

    x: tf.Tensor
    h: tf.Tensor
    s: tf.Tensor
    g: tf.Tensor


class Recurrence:
    """Cells on top of each other, in a loop over time.

    Args:
        cells: The first takes the inputs, the last gives the outputs.
        mask: Of the steps that count, [steps, batch, 1], or None. Where it is
            False the states stay as they were.
        zeroes: Whether the output of a masked step is 0, and not that of the
            step before it.
    """

    def __init__(
        self, cells: Sequence[Cell], mask: tf.Tensor | None, zeroes: bool
    ):
        self._cells, self._mask, self._zeroes = cells, mask, zeroes

    def backpropagate(
        self,
        x: tf.Tensor,
        states: Sequence[tf.Tensor],
        output_gradients: tf.Tensor,
        state_gradients: Sequence[tf.Tensor],
    ) -> list[Trace]:
        """Returns what each cell saw, and the gradients at pre-activations.

        Each step is computed again in the way back, from the states before it,
        so that nothing else of it has to lie in memory.

        Args:
            x: The inputs, [steps, batch, inputs].
            states: Those at the start, [batch, units], of all cells in order.
            output_gradients: At the outputs, [steps, batch, units].
            state_gradients: At the states after the last step.
        """
        s = self._drives(x)
        # The state of the loop begins with the output of the step before.
        start = [tf.zeros_like(output_gradients[0]), *states]
        before, last = self._forward(s, start)
        end = [tf.zeros_like(start[0]), *state_gradients]
        g = self._backward(s, before, output_gradients, end)
        traces: list[Trace] = []
        place = 1  # The output of the step before comes first.
        for cell, s_of_cell, g_of_cell in zip(self._cells, s, g):
            h = before[place]
            if traces:
                s_of_cell = cell.input_product(x)
            traces.append(Trace(x, h, s_of_cell, g_of_cell))
            x = tf.concat([h[1:], last[place][tf.newaxis]], axis=0)
            place += cell.states
        return traces

    def _drives(self, x) -> list[tf.Tensor]:
        """Returns what is added to W^T x of each cell: all of it for the first
        cell, and zeros to differentiate by for those above."""
        s = self._cells[0].input_product(x)
        others = [len(c.gates) * c.units for c in self._cells[1:]]
        zeros = [tf.zeros([*tf.unstack(tf.shape(s)[:2]), n]) for n in others]
        return [s, *(tf.cast(z, s.dtype) for z in zeros)]

    def _step(self, t, drives, state) -> list[tf.Tensor]:
        """Returns the state of the loop after a step."""
        output, *states = state
        new: list[tf.Tensor] = []
        x = None
        for cell, s in zip(self._cells, drives):
            own = states[len(new) : len(new) + cell.states]
            if x is not None:
                s += cell.input_product(x)
            after = cell.step(s, own)
            x = after[0]
            new += after
        if self._mask is None:
            return [tf.identity(x), *new]
        old = [tf.zeros_like(output) if self._zeroes else output, *states]
        keep = self._mask[t]
        return [tf.where(keep, n, o) for n, o in zip([x, *new], old)]

    def _forward(self, drives, start):
        """Returns the states of the loop before all steps, and after them."""

        def step(t, state):
            return state, self._step(t, [d[t] for d in drives], state)

        return _loop(_steps(drives[0]), step, start, start)

    def _backward(self, drives, before, output_gradients, end):
        """Returns the gradients at the drives of all steps."""
        steps = _steps(drives[0])

        def step(k, gradients):
            t = steps - 1 - k
            inputs = [d[t] for d in drives], [b[t] for b in before]
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                after = self._step(t, *inputs)
            first, *others = gradients
            return tape.gradient(
                after,
                inputs,
                [first + output_gradients[t], *others],
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )

        like = [d[0] for d in drives]
        found, _ = _loop(steps, step, like, end)
        return [tf.reverse(g, [0]) for g in found]


def _loop(steps, step, like, state):
    """Runs `step(t, state) -> (what to keep of t, new state)` for all t.

    Args:
        steps: Their number.
        step: Run in a graph at most once, to build the loop.
        like: Tensors of the shapes of what is kept.
        state: At the start.

    Returns:
        (what was kept, with the steps as a first axis; the last state).
    """
    arrays = [
        tf.TensorArray(x.dtype, steps, element_shape=x.shape) for x in like
    ]

    def body(t, arrays, state):
        kept, new = step(t, state)
        arrays = [array.write(t, x) for array, x in zip(arrays, kept)]
        for old, x in zip(state, new):
            x.set_shape(old.shape)
        return t + 1, arrays, new

    _, arrays, state = tf.while_loop(
        lambda t, *_: t < steps,
        body,
        (tf.constant(0), arrays, list(state)),
        maximum_iterations=steps,
    )
    return [array.stack() for array in arrays], state


def _steps(x) -> int | tf.Tensor:
    return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]
