"""Keras' cells on tensors, each step's pre-activations given.

    s_t = W^T x_t + b,    h_t = f(s_t, R, h_(t-1), ...)

with the columns of W and R in gates.
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
    def recurrent_gates(cls) -> list[str]:
        """Returns the gates of R in groups that have the same inputs."""
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
        """Returns what W is multiplied by, for each gate."""
        return self._by_gate(x, self.weights.dropout)

    def _by_gate(self, x, masks):
        rows = _dropped(x, masks)
        return rows if len(rows) > 1 else rows * len(self.gates)

    def recurrent_rows(
        self, s: tf.Tensor, h: tf.Tensor, g: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Returns what R is multiplied by, and the gradients at the products.

        Args:
            s: The pre-activations W^T x + b.
            h: The states before the steps.
            g: The gradients at s.

        Returns:
            (inputs for each gate, gradients as g).
        """
        del s
        return self._by_gate(h, self.weights.recurrent_dropout), g

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
    def recurrent_gates(cls):
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
        *others, last = self._by_gate(h, self.weights.recurrent_dropout)
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
