"""Second moments of a block by products with vectors, from J alone.

With J the Jacobian of s = W^T a of one call (`LayerMap`), u 1^T a change of all
columns alike, and rows r:

    J(u 1^T)_r = (u a_r) 1,    J^T J(u 1^T) = sum_r a_r (u a_r)  in each column

which is the second moment of the inputs times u. The gradients g are rows by
what a change of each column moves (`find_columns`).
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfkfac.blocks import LayerCall
from tfkfac.blocks.factored import FactoredBlock
from tfkfac.products.uses import Use as OperationUse
from tfkfac.verification.findings import Finding, failed
from tfkfac.verification.layer_map import (
    Array,
    LayerMap,
    find_columns,
    is_half,
)
from tfkfac.verification.observer import Update
from tfkfac.verification.use import Use, in_float64


class UseSums:
    """The sums of one call of a layer.

    Args:
        use: The call.
        block: Its block: s = W^T a.
        exchanged: Whether s = W a, as at the projection of a tied embedding.
        rng: For what is drawn.

    Attributes:
        shape: Of W in the matrix form, (groups, d_in, d_out).
        mask: 1 for elements of s that count, or None.
    """

    def __init__(
        self,
        use: Use,
        block: FactoredBlock,
        exchanged: bool,
        rng: np.random.Generator,
    ):
        self._map, self.exchanged = LayerMap(use, block), exchanged
        groups, d_in, d_out = matrix_shape(block)
        self.shape = (
            (groups, d_out, d_in) if exchanged else (groups, d_in, d_out)
        )
        self._rng, self._use = rng, use
        self.mask = masked(use)

    def _turned(self, matrix: Array) -> Array:
        return np.swapaxes(matrix, 1, 2) if self.exchanged else matrix

    def _forward(self, direction: Array) -> Array:
        direction = np.broadcast_to(direction, self.shape)
        return self._map.forward(self._turned(direction))

    @property
    def rows(self) -> float:
        """How many rows count."""
        groups, _, d_out = self.shape
        total = np.prod(self._use.source.shape)
        if self.mask is not None:
            total = self.mask.sum()
        return float(total) / (groups * d_out)

    def _kept(self, x: Array) -> Array:
        return x if self.mask is None else x * self.mask

    def input_product(self, u: Array) -> Array:
        """Returns (sum a a^T) u for u, both [groups, d_in]."""
        moved = self._kept(self._forward(u[:, :, np.newaxis]))
        return self._turned(self._map.backward(moved))[:, :, 0]

    def output_rows(self) -> Array | None:
        """Returns g, [groups, rows, d_out]; None where no input reaches it."""
        half = is_half(self._use.source)
        columns = find_columns(self._forward, self.shape, self._rng, half)
        if columns is None:
            return None
        return columns.rows(self._kept(in_float64(self._use.gradient)))


def count_rows(
    of_uses: Sequence[UseSums], update: Update, block
) -> list[Finding]:
    """Returns whether the block takes the rows that the masks leave.

    If not, the masks are dropped, so that what else is wrong is seen.
    """
    counted = sum(p.rows[block][1] for p in update.parts if block in p.rows)
    left = sum(x.rows for x in of_uses)
    if all(x.mask is None for x in of_uses) or abs(left - counted) < 0.5:
        return []
    for of_use in of_uses:
        of_use.mask = None
    sentence = (
        f"the mask leaves {left:g} of {sum(x.rows for x in of_uses):g} rows, "
        f"and {type(block).__name__} takes {counted:g}: look at its "
        "`mask_rows`, and at what its `moments` do with the mask of a call."
    )
    return [failed("rows", block.path, sentence)]


def add_products(mine, of_use: UseSums, u, v, places, block) -> None:
    """Adds what one call adds to the products of the factors."""
    if of_use.exchanged:
        first, second, vectors = "G", "A", (v, u)
    else:
        first, second, vectors = "A", "G", (u, v)
    if places is None:
        mine[first] += of_use.input_product(vectors[0])
    for place in dict.fromkeys(places or ()):
        one = np.zeros(u.shape)
        one[place] = 1
        mine[first][place] += of_use.input_product(one)[place]
    g = of_use.output_rows()
    if g is None:
        mine[second] += np.nan
        return
    diagonal = block.factors[0 if second == "A" else 1].diagonal
    mine[second] += output_product(g, vectors[1], diagonal)
    if u.shape == v.shape:
        mine["swapped"] += output_product(g, u, False)


def matrix_shape(block: FactoredBlock) -> tuple[int, int, int]:
    """Returns the shape of V in the matrix form of a block."""
    zeros = [np.zeros(v.shape, "float32") for v in block.variables]
    groups, d_in, d_out = block.to_matrix(zeros).shape
    return groups, d_in, d_out


def masked(use: Use) -> Array | None:
    """Returns the mask of a call on the first axes of s, shaped as s.

    None without a mask, and for one that is not of these axes.
    """
    call, shape = use.call, tuple(use.source.shape)
    mask = call.mask
    if mask is None and isinstance(call.layer, keras.layers.Embedding):
        mask = call.layer.compute_mask(call.inputs)
    if mask is not None and isinstance(call.saved, OperationUse):
        mask = call.saved.mask(mask)
    if mask is None or tuple(mask.shape) != shape[: mask.shape.rank]:
        return None
    if not _is_of_rows(call, mask):
        return None
    mask = in_float64(mask)
    ones = [1] * (len(shape) - mask.ndim)
    return np.broadcast_to(mask.reshape(*mask.shape, *ones), shape)


def _is_of_rows(call: LayerCall, mask: tf.Tensor) -> bool:
    """Whether a layer keeps apart what the axes of the mask number."""
    layer, use, rank = call.layer, call.saved, mask.shape.rank
    if isinstance(use, OperationUse):
        if use.contraction is not None:
            return use.contraction.mask_rows(mask, call.inputs) is not None
        return use.window is None or rank == 1
    if isinstance(layer, keras.layers.EinsumDense):
        first, _, rest = layer.equation.partition(",")
        named = len(first.replace("...", ""))
        elided = "." * (call.inputs.shape.rank - named)
        before = first.replace("...", elided)
        after = rest.partition("->")[2].replace("...", elided)
        return before[:rank] == after[:rank]
    # Keras' convolutions do not look at masks of positions.
    return rank == 1 or not hasattr(layer, "kernel_size")


def output_product(g: Array, v: Array, diagonal: bool) -> Array:
    """Returns (sum g g^T) v, or what its diagonal does, [groups, d_out].

    Args:
        g: [groups, rows, d_out].
        v: [groups, d_out].
        diagonal: Whether only the diagonal is kept.
    """
    if diagonal:
        return np.sum(g * g, axis=1) * v
    along = np.einsum("grj,gj->gr", g, v)
    return np.einsum("grj,gr->gj", g, along)
