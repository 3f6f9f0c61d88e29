"""Blocks of recurrent layers: each time step is a use of their kernels."""

import dataclasses
import functools
from collections.abc import Sequence

import keras
import tensorflow as tf

from tfkfac.blocks.base import CurvatureBlock, LayerCall
from tfkfac.blocks.columns import ColumnsBlock, ConvolutionColumnsBlock
from tfkfac.blocks.factored import FactoredBlock
from tfkfac.recurrence import calls, cells, replay


class RecurrentBlock(CurvatureBlock):
    """`keras.layers.SimpleRNN`, `LSTM`, `GRU`, `RNN` of such cells, `ConvLSTM`.

    Kernel and recurrent kernel of each cell are A (x) G each, as if they were
    independent (Martens, Ba and Johnson 2018). The rows are
    (example, step) pairs, A = (1 / N) sum a a^T over the inputs or the states
    before the steps, and G = (1 / R) sum g g^T with the gradients at the
    pre-activations of all gates together. Of `ConvLSTM1D`, `2D` and `3D` the
    rows are (example, step, output position), and a is a patch. The bias is the
    last row of the kernel; a GRU with `reset_after` has one for either kernel,
    and the gradient of the candidate at the recurrent one is r times that at
    the other.

    Gates whose inputs differ have factors of their own, so that s = W^T a for
    each: the candidate of a GRU without `reset_after`, whose recurrent kernel
    sees r h; and all gates, where each has its own dropout, as those of
    ConvLSTM always have.

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

    def describe_method(self, product_dtype):
        found = {part.describe_method(product_dtype) for part in self._parts}
        return " and ".join(sorted(found - {""}))

    def moments(self, uses, product_dtype, dtype):
        by_use = [self.calls_of_parts(use, dtype) for use in uses]
        return [
            moment
            for part, of_part in zip(self._parts, zip(*by_use))
            for moment in part.moments(of_part, product_dtype, dtype)
        ]

    def calls_of_parts(self, use, dtype) -> list[LayerCall]:
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
    is_convolutional = cells.is_convolutional(cell)
    block = ConvolutionColumnsBlock if is_convolutional else ColumnsBlock
    gates = cells.cell_type(cell).gates
    kernels = cell.kernel, cell.recurrent_kernel
    rows = 0 if cell.bias is None else len(cell.bias.shape)
    if not all(kernel.trainable for kernel in kernels[:rows]):
        rows = 0
    found = []
    for row, (kernel, groups) in enumerate(zip(kernels, _groups(cell))):
        width = kernel.shape[-1] // len(gates)
        for group in groups if kernel.trainable else ():
            gate = gates.index(group[0])
            end = gate + len(group)
            name = kernel.name if group == gates else f"{kernel.name}/{group}"
            found.append(
                block(
                    layer,
                    place=(i, row),
                    kernel=kernel,
                    gate=gate,
                    columns=slice(gate * width, end * width),
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
