"""Recurrent layers over time: their states, gradients at pre-activations.

Time is the first axis here, and goes the way that the layer goes. A cell has

    s_t = W^T x_t + b,    h_t = f(s_t, R, h_(t-1), ...)

with the columns of W and R in gates. The gradients at s of all steps are those
of backpropagation through time.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Weights:
    """The tensors of a cell, as one call had them.

    Attributes:
        kernel: W, [inputs, gates * units].
        recurrent_kernel: R, [units, gates * units].
        bias: [gates * units], [2, gates * units] or None.
        dropout: What the inputs are multiplied by, [batch, inputs]: nothing,
            one tensor, or one for each gate.
        recurrent_dropout: Likewise for the states, [batch, units].
    """

    kernel: tf.Tensor
    recurrent_kernel: tf.Tensor
    bias: tf.Tensor | None = None
    dropout: Sequence[tf.Tensor] = ()
    recurrent_dropout: Sequence[tf.Tensor] = ()

    def cast(self, dtype: tf.DType) -> "Weights":
        """Returns them in another type."""
        fields = [getattr(self, f.name) for f in dataclasses.fields(self)]
        return Weights(
            *tf.nest.map_structure(
                lambda x: None if x is None else tf.cast(x, dtype), fields
            )
        )


class Cell(abc.ABC):
    """A cell of Keras and the tensors of a call.

    Args:
        layer: The cell, for its activations.
        weights: Of the call.

    Attributes:
        gates: A letter for each, in the order of the columns.
        states: How many states there are; the first is the output.
    """

    gates = "h"
    states = 1

    def __init__(self, layer: keras.layers.Layer, weights: Weights):
        self.units, self.weights = layer.units, weights
        self._activation = layer.activation
        self._gate = getattr(layer, "recurrent_activation", None)

    @classmethod
    def recurrent_gates(cls, layer: keras.layers.Layer) -> list[str]:
        """Returns the gates whose columns of R are multiplied together."""
        del layer
        return [cls.gates]

    def input_product(self, x: tf.Tensor) -> tf.Tensor:
        """Returns s = W^T x + b for x, [..., batch, inputs]."""
        w = self.weights
        s = _product(x, w.kernel, w.dropout)
        if w.bias is None:
            return s
        return s + (w.bias[0] if w.bias.shape.rank == 2 else w.bias)

    def recurrent_product(self, h: tf.Tensor) -> tf.Tensor:
        """Returns R^T h, and the bias of R if it has one."""
        w = self.weights
        s = _product(h, w.recurrent_kernel, w.recurrent_dropout)
        if w.bias is None or w.bias.shape.rank == 1:
            return s
        return s + w.bias[1]

    def input_rows(self, x: tf.Tensor) -> list[tf.Tensor]:
        """Returns what W is multiplied by: once, or for each gate."""
        return _dropped(x, self.weights.dropout)

    def recurrent_rows(
        self, s: tf.Tensor, h: tf.Tensor, g: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Returns what R is multiplied by, and the gradients at the products.

        Args:
            s: The pre-activations W^T x + b.
            h: The states before the steps.
            g: The gradients at s.

        Returns:
            (inputs for each of `recurrent_gates`, gradients as g).
        """
        del s
        return _dropped(h, self.weights.recurrent_dropout), g

    @abc.abstractmethod
    def step(
        self, s: tf.Tensor, states: Sequence[tf.Tensor]
    ) -> list[tf.Tensor]:
        """Returns the states after a step for those before, [batch, units]."""


class SimpleCell(Cell):
    """`keras.layers.SimpleRNNCell`: h_t = f(s_t + R^T h)."""

    def step(self, s, states):
        return [self._activation(s + self.recurrent_product(states[0]))]


class LSTMCell(Cell):
    """`keras.layers.LSTMCell` (Hochreiter and Schmidhuber 1997).

    c_t = f c + i tanh(...), h_t = o tanh(c_t); the gates are sigmoids.
    """

    gates = "ifco"
    states = 2

    def step(self, s, states):
        h, c = states
        s += self.recurrent_product(h)
        i, f, candidate, o = tf.split(s, 4, axis=-1)
        c = self._gate(f) * c + self._gate(i) * self._activation(candidate)
        return [self._gate(o) * self._activation(c), c]


class GRUCell(Cell):
    """`keras.layers.GRUCell` with `reset_after` (Cho et al. 2014, v3).

        h_t = z h + (1 - z) tanh(s_h + r (R_h^T h + b))

    so that the gradient at R_h^T h is r times that at s_h.
    """

    gates = "zrh"

    def step(self, s, states):
        (h,) = states
        s_z, s_r, s_h = tf.split(s, 3, axis=-1)
        q_z, q_r, q_h = tf.split(self.recurrent_product(h), 3, axis=-1)
        z, r = self._gate(s_z + q_z), self._gate(s_r + q_r)
        return [z * h + (1 - z) * self._activation(s_h + r * q_h)]

    def recurrent_rows(self, s, h, g):
        rows, g = super().recurrent_rows(s, h, g)
        r = self._reset(s, h)
        g_zr, g_h = tf.split(g, [2 * self.units, self.units], axis=-1)
        return rows, tf.concat([g_zr, r * g_h], axis=-1)

    def _reset(self, s, h):
        """Returns r of all steps at once."""
        columns = slice(self.units, 2 * self.units)
        return self._gate((s + self.recurrent_product(h))[..., columns])


class GRUResetBeforeCell(GRUCell):
    """`keras.layers.GRUCell` without `reset_after` (Cho et al. 2014, v1).

        h_t = z h + (1 - z) tanh(s_h + R_h^T (r h))

    The columns of R of the candidate are multiplied by r h, the others by h.
    """

    @classmethod
    def recurrent_gates(cls, layer):
        return ["zr", "h"]

    def recurrent_product(self, h):
        """Returns that of the two gates alone."""
        w = self.weights
        return _product(
            h,
            w.recurrent_kernel[:, : 2 * self.units],
            w.recurrent_dropout[:2],
        )

    def step(self, s, states):
        (h,) = states
        s_zr, s_h = tf.split(s, [2 * self.units, self.units], axis=-1)
        zr = self._gate(s_zr + self.recurrent_product(h))
        z, r = tf.split(zr, 2, axis=-1)
        w = self.weights
        q_h = _product(
            r * h,
            w.recurrent_kernel[:, 2 * self.units :],
            w.recurrent_dropout[2:],
        )
        return [z * h + (1 - z) * self._activation(s_h + q_h)]

    def recurrent_rows(self, s, h, g):
        rows = _dropped(h, self.weights.recurrent_dropout)
        *others, last = rows * 2 if len(rows) == 1 else rows
        return [*others, self._reset(s, h) * last], g

    def _reset(self, s, h):
        u = self.units
        q = self.recurrent_product(h)[..., u:]
        return self._gate(s[..., u : 2 * u] + q)


def knows(layer: Any) -> bool:
    """Whether a cell is one of Keras' own; not of a class derived from it."""
    layers = keras.layers
    return type(layer) in (
        layers.SimpleRNNCell,
        layers.LSTMCell,
        layers.GRUCell,
    )


def cell_type(layer: Any) -> type[Cell]:
    """Returns the class for a cell that `knows` knows."""
    if isinstance(layer, keras.layers.LSTMCell):
        return LSTMCell
    if isinstance(layer, keras.layers.GRUCell):
        return GRUCell if layer.reset_after else GRUResetBeforeCell
    return SimpleCell


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


def _dropped(x, masks) -> list[tf.Tensor]:
    return [x * mask for mask in masks] or [x]


def _product(x, kernel, masks):
    """Returns x W; with several masks, each for its share of the columns."""
    rows = _dropped(x, masks)
    columns = tf.split(kernel, len(rows), axis=1) if len(rows) > 1 else [kernel]
    parts = [
        tf.matmul(a, W) if a.shape.rank == 2 else tf.tensordot(a, W, 1)
        for a, W in zip(rows, columns)
    ]
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=-1)
