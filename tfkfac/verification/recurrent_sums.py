"""Sums of recurrent layers, whose calls are no linear map of their weights.

The rows a and g of each kernel come of a second run over time. Their sum a g^T
must be what the layer's own call and TensorFlow's derivative of its loop give
for the same gradients at its outputs; the factors must be the second moments
of these rows.
"""

import functools

import numpy as np
import tensorflow as tf

from tfkfac.blocks import LayerCall, RecurrentBlock
from tfkfac.blocks.columns import ColumnsBlock
from tfkfac.estimator import state_dtype
from tfkfac.verification.sums import output_product
from tfkfac.verification.use import Array, Use, in_float64


def rows_of(
    block: RecurrentBlock, use: Use
) -> list[tuple[ColumnsBlock, Array, Array, Array]]:
    """Returns (part, a, g, 1 for rows that count) of each kernel of a call.

    a is [rows, d_in] with its 1 for the bias, g is [rows, d_out].
    """
    call = LayerCall(**{**vars(use.call), "gradient": use.gradient})
    call.scale = None
    dtype = state_dtype(block.variables[0])
    found = []
    for part, of_part in zip(block.members, block.calls_of_parts(call, dtype)):
        assert isinstance(part, ColumnsBlock)
        a = np.reshape(in_float64(of_part.inputs), [-1, part.d_in])
        g = np.reshape(in_float64(of_part.gradient), [-1, part.d_out])
        if part.bias is not None:
            a = np.concatenate([a, np.ones([len(a), 1])], axis=1)
        mask = np.ones(len(a))
        if of_part.mask is not None:
            mask = np.reshape(in_float64(of_part.mask), [-1])
        found.append((part, a, g, mask))
    return found


def gradient_error(block: RecurrentBlock, use: Use) -> float:
    """Returns how far sum a g^T is from the derivative of the loop."""
    by_rows = {id(v): np.zeros(v.shape) for v in block.variables}
    for part, a, g, _ in rows_of(block, use):
        matrix = tf.constant((a.T @ g)[np.newaxis], "float32")
        for v, x in zip(part.variables, part.from_matrix(matrix)):
            by_rows[id(v)] += in_float64(x)
    found = use.backward(block.variables, use.gradient)
    pairs = [(x, in_float64(y)) for x, y in zip(by_rows.values(), found)]
    error = sum(np.sum((x - y) ** 2) for x, y in pairs)
    size = sum(np.sum(y**2) for _, y in pairs)
    return float(np.sqrt(error / size)) if size else float(error > 0)


def sums(
    block: RecurrentBlock, uses: list[Use], vectors: list[tuple[Array, Array]]
) -> list[tuple[Array, Array, float]]:
    """Returns ((sum a a^T) u, (sum g g^T) v, R) of each kernel.

    Args:
        block: The block.
        uses: The calls of its layer.
        vectors: (u, v) of each kernel, [d_in] and [d_out].
    """
    by_use = []
    for use in uses:
        of_use = []
        for (part, a, g, mask), (u, v) in zip(rows_of(block, use), vectors):
            diagonal = [f.diagonal for f in part.factors]
            found = [
                output_product(x[np.newaxis], y[np.newaxis], flag)[0]
                for x, y, flag in zip(
                    (a * mask[:, np.newaxis], g * mask[:, np.newaxis]),
                    (u, v),
                    diagonal,
                )
            ]
            of_use.append((*found, float(mask.sum())))
        by_use.append(of_use)
    return [
        functools.reduce(
            lambda x, y: tuple(a + b for a, b in zip(x, y)), of_part
        )
        for of_part in zip(*by_use)
    ]
