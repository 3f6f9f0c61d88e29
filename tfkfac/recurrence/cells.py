"""Keras' cells on tensors, each step's pre-activations given.

    s_t = W^T x_t + b,    h_t = f(s_t, R, h_(t-1), ...)

with the columns of W and R in gates. Of a recurrent convolution x and h are
images, [..., batch, *space, channels], and both products are convolutions.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import keras_compat


@dataclasses.dataclass(frozen=True)
class Weights:
    """The tensors of a cell, as one call had them.

    Attributes:
        kernel: W, [inputs, gates * units], of a convolution
            [*size, inputs, gates * units].
        recurrent_kernel: R, [units, gates * units], [*size, units, ...].
        bias: [gates * units], [2, gates * units] or None.
        dropout: What the inputs are multiplied by, as those of a step:
            nothing, one tensor, or one for each gate.
        recurrent_dropout: Likewise for the states.
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
        self.units, self.weights = weights.recurrent_kernel.shape[-2], weights
        self._activation = layer.activation
        self._gate = getattr(layer, "recurrent_activation", None)

    @classmethod
    def recurrent_gates(cls) -> list[str]:
        """Returns the gates of R in groups that have the same inputs."""
        return [cls.gates]

    def input_product(self, x: tf.Tensor) -> tf.Tensor:
        """Returns s = W^T x + b for x, [..., batch, inputs]."""
        w = self.weights
        s = _products(self._by_kernel, x, w.kernel, w.dropout)
        if w.bias is None:
            return s
        return s + (w.bias[0] if w.bias.shape.rank == 2 else w.bias)

    def recurrent_product(self, h: tf.Tensor) -> tf.Tensor:
        """Returns R^T h, and the bias of R if it has one."""
        w = self.weights
        s = _products(
            self._by_recurrent_kernel,
            h,
            w.recurrent_kernel,
            w.recurrent_dropout,
        )
        if w.bias is None or w.bias.shape.rank == 1:
            return s
        return s + w.bias[1]

    def _by_kernel(self, x: tf.Tensor, W: tf.Tensor) -> tf.Tensor:
        """Returns the product of inputs with columns of W."""
        return _matmul(x, W)

    def _by_recurrent_kernel(self, h: tf.Tensor, R: tf.Tensor) -> tf.Tensor:
        """Returns the product of states with columns of R."""
        return _matmul(h, R)

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


class ConvLSTMCell(LSTMCell):
    """The cell of `keras.layers.ConvLSTM1D`, `2D` and `3D` (Shi et al. 2015).

    An LSTM of images whose products are convolutions: that of the inputs as
    the layer says, that of the states with stride 1 and "same" padding.
    Channels that come first are moved last.
    """

    def __init__(self, layer, weights):
        dropped = {  # At a rate of 1 Keras drops nothing.
            name: [
                channels_last(layer, mask, 1)
                for mask in getattr(weights, name)
                if getattr(layer, name) < 1
            ]
            for name in ("dropout", "recurrent_dropout")
        }
        super().__init__(layer, dataclasses.replace(weights, **dropped))
        self._options = {
            "strides": layer.strides,
            "padding": layer.padding.upper(),
            "dilations": layer.dilation_rate,
        }

    def _by_kernel(self, x, W):
        return _convolve(x, W, **self._options)

    def _by_recurrent_kernel(self, h, R):
        return _convolve(h, R, padding="SAME")


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
        return _products(
            self._by_recurrent_kernel,
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
        q_h = _products(
            self._by_recurrent_kernel,
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
    return is_convolutional(layer) or type(layer) in (
        layers.SimpleRNNCell,
        layers.LSTMCell,
        layers.GRUCell,
    )


def is_convolutional(layer: Any) -> bool:
    """Whether a cell is that of `keras.layers.ConvLSTM1D`, `2D` or `3D`."""
    return type(layer) is keras_compat.ConvLSTMCell


def cell_type(layer: Any) -> type[Cell]:
    """Returns the class for a cell that `knows` knows."""
    if is_convolutional(layer):
        return ConvLSTMCell
    if isinstance(layer, keras.layers.LSTMCell):
        return LSTMCell
    if isinstance(layer, keras.layers.GRUCell):
        return GRUCell if layer.reset_after else GRUResetBeforeCell
    return SimpleCell


def _dropped(x, masks) -> list[tf.Tensor]:
    return [x * mask for mask in masks] or [x]


def _products(multiply, x, kernel, masks):
    """Returns x W; with several masks, each for its share of the columns."""
    rows = _dropped(x, masks)
    columns = [kernel]
    if len(rows) > 1:
        columns = tf.split(kernel, len(rows), axis=-1)
    parts = [multiply(a, W) for a, W in zip(rows, columns)]
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=-1)


def _matmul(x, W):
    return tf.matmul(x, W) if x.shape.rank == 2 else tf.tensordot(x, W, 1)


def _convolve(x, W, **options):
    """Returns a convolution of images with any axes before their space."""
    rank = W.shape.rank - 2
    before = x.shape.rank - rank - 1
    images = tf.reshape(x, [-1, *x.shape[before:]])
    # In eager mode gradients of volumes need the format to be given.
    data_format = ("NWC", "NHWC", "NDHWC")[rank - 1]
    s = tf.nn.convolution(images, W, data_format=data_format, **options)
    sizes = [x.shape[i] or tf.shape(x)[i] for i in range(before)]
    return tf.reshape(s, [*sizes, *s.shape[1:]])


def channels_last(
    layer: keras.layers.Layer, x: tf.Tensor, axis: int
) -> tf.Tensor:
    """Returns x with that axis last, if a cell's channels come first."""
    if getattr(layer, "data_format", "channels_last") == "channels_last":
        return x
    others = [i for i in range(x.shape.rank) if i != axis]
    return tf.transpose(x, [*others, axis])
