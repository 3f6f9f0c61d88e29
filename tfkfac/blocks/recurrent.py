"""Blocks of recurrent layers: each time step is a use of their kernels."""

import dataclasses
import functools
from collections.abc import Sequence

import keras
import tensorflow as tf

from tfkfac.blocks.base import CurvatureBlock, LayerCall
from tfkfac.blocks.factored import FactoredBlock
from tfkfac.blocks.kronecker import KroneckerBlock
from tfkfac.recurrence import calls, cells, replay


class ColumnsBlock(KroneckerBlock):
    """Columns of a kernel of a cell, and of its bias, as A (x) G.

    Those of all gates, where these have the same inputs.

    Args:
        layer: The recurrent layer.
        place: The number of the cell, and 0 for its kernel or 1 for the
            recurrent one: the row that is the kernel's of a bias of both.
        kernel: The kernel.
        gate: The number of the first of its gates.
        columns: Those of its gates.
        bias: The bias, or None.
        prefix: What the names of its state begin with.
    """

    def __init__(self, layer, place, kernel, gate, columns, bias, prefix):
        super().__init__(
            layer,
            kernel,
            bias,
            d_in=kernel.shape[0],
            d_out=columns.stop - columns.start,
            prefix=prefix,
        )
        self.place, self.gate, self.columns = place, gate, columns

    def input_rows(self, inputs):
        return tf.reshape(inputs, [1, -1, self.d_in])

    def output_rows(self, outputs):
        return tf.reshape(outputs, [1, -1, self.d_out])

    def own_columns(self, x: tf.Tensor) -> tf.Tensor:
        """Returns those of its gates; x itself where there are no others."""
        return x if self._beside == [0, 0] else x[..., self.columns]

    def output_moment(self, use, g, mask, count, product_dtype, dtype):
        """Both kernels of a cell may have the same gradients: then once."""
        key = id(use.gradient), self.factors[1].diagonal
        if key not in use.saved:
            use.saved[key] = super().output_moment(
                use, g, mask, count, product_dtype, dtype
            )
        return use.saved[key]

    def kernel_matrix(self, kernel):
        return super().kernel_matrix(self.own_columns(kernel))

    def kernel_from_matrix(self, matrix):
        """Returns zeros in the columns that are not its own."""
        matrix = tf.reshape(matrix, [self.d_in, self.d_out])
        return tf.pad(matrix, [[0, 0], self._beside])

    def bias_matrix(self, bias):
        rows = tf.reshape(bias, [-1, self.kernel.shape[1]])
        return super().bias_matrix(rows[self.place[1], self.columns])

    def bias_from_matrix(self, matrix):
        """Returns zeros in the columns that are not its own."""
        row = tf.pad(tf.reshape(matrix, [self.d_out]), [self._beside])
        zero = tf.zeros_like(row)
        count = self.bias.shape.num_elements() // self.kernel.shape[1]
        rows = [row if i == self.place[1] else zero for i in range(count)]
        return tf.reshape(tf.stack(rows), self.bias.shape)

    @property
    def _beside(self) -> list[int]:
        """How many columns of others come before and after."""
        return [self.columns.start, self.kernel.shape[1] - self.columns.stop]


class RecurrentBlock(CurvatureBlock):
    """`keras.layers.SimpleRNN`, `LSTM`, `GRU`, and `RNN` of such cells.

    Kernel and recurrent kernel of each cell are A (x) G each, as if they were
    independent (Martens, Ba and Johnson 2018). The rows are
    (example, step) pairs, A = (1 / N) sum a a^T over the inputs or the states
    before the steps, and G = (1 / R) sum g g^T with the gradients at the
    pre-activations of all gates together. The bias is the last row of the
    kernel; a GRU with `reset_after` has one for either kernel, and the gradient
    of the candidate at the recurrent one is r times that at the other.

    Gates whose inputs differ have factors of their own, so that s = W^T a for
    each: the candidate of a GRU without `reset_after`, whose recurrent kernel
    sees r h; and all gates, where each has its own dropout.

    In the forward pass Keras' own loop runs. The moments run through time once
    more, in float32 or wider, from what the call was given.
    """

    def __init__(self, layer):
        super().__init__(layer)
        self._parts = [
            part
            for i in range(len(calls.cells_of(layer)))
            for part in _columns(layer, i)
        ]
        variables = [v for part in self._parts for v in part.variables]
        self.variables = list({id(v): v for v in variables}.values())
        self._take_factors()

    def _take_factors(self):
        self.factors = [f for part in self._parts for f in part.factors]

    @classmethod
    def unsupported(cls, layer):
        if not calls.has_stock_loop(layer):
            return f"the loop of {type(layer).__name__} is not Keras' own"
        for cell in calls.cells_of(layer):
            if not cells.knows(cell):
                return f"its cell {type(cell).__name__} is none of Keras' own"
            for name in ("activation", "recurrent_activation"):
                if isinstance(getattr(cell, name, None), keras.layers.Layer):
                    return f"the {name} of its cell is a layer"
        return None

    @classmethod
    def for_layer(cls, layer, options):
        block = cls(layer)
        return [block] if block.variables else []

    @classmethod
    def record(cls, layer, call, keep, inputs, args, options):
        names = ("initial_state", "mask", "training")
        options = {**dict(zip(names, args)), **options}
        saved = calls.note(layer, inputs, options)
        outputs = call(inputs, **options)
        shapes = calls.shapes_of(outputs)
        use = LayerCall(
            layer,
            inputs,
            saved.mask,
            calls.joined(outputs),
            saved=(saved, shapes),
        )
        return calls.separated_as(keep(use), outputs)

    @property
    def path(self) -> str:
        return self._path

    @path.setter
    def path(self, path: str) -> None:
        self._path = path
        for part in getattr(self, "_parts", ()):
            part.path = f"{path}/{part.prefix.rstrip('/')}"

    @property
    def members(self) -> Sequence[FactoredBlock]:
        return self._parts

    def limit_factors(self, size):
        for part in self._parts:
            part.limit_factors(size)
        self._take_factors()

    def build_factors(self, add_state, dtype, accumulates):
        for part in self._parts:
            part.build_factors(add_state, dtype, accumulates)

    def build_inverses(self, inverter, add_state, dtype):
        of_parts = [
            part.build_inverses(inverter, add_state, dtype)
            for part in self._parts
        ]
        return [v for of_part in of_parts for v in of_part]

    def precondition(self, gradients, damping):
        V = {id(v): g for v, g in zip(self.variables, gradients)}
        found: dict[int, list[tf.Tensor]] = {id(v): [] for v in self.variables}
        for part in self._parts:
            own = [V[id(v)] for v in part.variables]
            for v, u in zip(part.variables, part.precondition(own, damping)):
                found[id(v)].append(u)
        # Each is of its own columns, and zero elsewhere.
        return [functools.reduce(tf.add, us) for us in found.values()]

    def moments(self, uses, product_dtype, dtype):
        by_use = [self._calls_of_parts(use, dtype) for use in uses]
        return [
            moment
            for part, of_part in zip(self._parts, zip(*by_use))
            for moment in part.moments(of_part, product_dtype, dtype)
        ]

    def _calls_of_parts(self, use, dtype) -> list[LayerCall]:
        """Returns a call of each part, with a row for each step."""
        saved, shapes = use.saved
        gradients = calls.separated(use.gradient, shapes)
        rows = replay.rows(self.layer, saved, use.inputs, gradients, dtype)
        shared: dict[tuple, tf.Tensor] = {}  # Output moments.
        found = []
        for part in self._parts:
            cell, kernel = part.place
            of_kernel = rows[cell][kernel]
            a = of_kernel.inputs[part.gate]
            mask = use.mask
            if mask is not None:
                mask = replay.mask_by_step(self.layer, mask, a)
            found.append(
                dataclasses.replace(
                    use,
                    inputs=a,
                    mask=mask,
                    gradient=part.own_columns(of_kernel.gradients),
                    saved=shared,
                )
            )
        return found


def _columns(layer, i: int) -> list[ColumnsBlock]:
    """Returns the blocks of one cell, for the kernels that are trainable.

    A bias of both kernels has a block where both are.
    """
    every = calls.cells_of(layer)
    cell, prefix = every[i], f"cell_{i}/" if len(every) > 1 else ""
    gates = cells.cell_type(cell).gates
    kernels = cell.kernel, cell.recurrent_kernel
    rows = 0 if cell.bias is None else len(cell.bias.shape)
    if not all(kernel.trainable for kernel in kernels[:rows]):
        rows = 0
    found = []
    for row, (kernel, groups) in enumerate(zip(kernels, _groups(cell))):
        for group in groups if kernel.trainable else ():
            gate = gates.index(group[0])
            end = gate + len(group)
            name = kernel.name if group == gates else f"{kernel.name}/{group}"
            found.append(
                ColumnsBlock(
                    layer,
                    place=(i, row),
                    kernel=kernel,
                    gate=gate,
                    columns=slice(gate * cell.units, end * cell.units),
                    bias=cell.bias if row < rows else None,
                    prefix=f"{prefix}{name}/",
                )
            )
    return found


def _groups(cell) -> tuple[list[str], list[str]]:
    """Returns the gates that have the same inputs, of either kernel."""
    kind = cells.cell_type(cell)
    own_dropout = hasattr(cell, "dropout_mask_count")  # Of each gate.
    return (
        [*kind.gates] if own_dropout and cell.dropout else [kind.gates],
        [*kind.gates]
        if own_dropout and cell.recurrent_dropout
        else kind.recurrent_gates(),
    )
