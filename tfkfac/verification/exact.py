"""A (x) G beside the exact Fisher of a layer, by products with matrices.

The Fisher of the layer times D, from its own Jacobian J and the gradients g of
the statistics, example by example i:

    F D = (1/N) sum_i p_i <p_i, D>,    p_i = sum_r a_r g_r^T over its rows

For an example of one row p p^T is (a a^T) (x) (g g^T), so that on a batch of
one example F D = A D G exactly. Elsewhere it is an approximation.
"""

from collections.abc import Sequence

import numpy as np

from tfkfac.blocks.kronecker import KroneckerBlock
from tfkfac.verification.findings import NOTE, Finding, judged, relative
from tfkfac.verification.layer_map import Array, LayerMap, is_half
from tfkfac.verification.observer import Update
from tfkfac.verification.sums import matrix_shape
from tfkfac.verification.use import Use, in_float64


def _products(update: Update, block: KroneckerBlock, N: float, D: Array):
    """Returns (F D, A D G) for a block with two factors that are whole."""
    along: Array | float = 0.0
    maps = []
    for use in update.uses_of(block):
        g, layer_map = in_float64(use.gradient), LayerMap(use, block)
        moved = g * layer_map.forward(D)
        along = along + moved.reshape(len(moved), -1).sum(axis=1)
        maps.append((g, layer_map))
    exact = np.zeros(D.shape)
    for g, layer_map in maps:
        of_example = np.reshape(along, [-1, *[1] * (g.ndim - 1)])
        exact += layer_map.backward(g * of_example)
    A, G = update.factors[block]
    return exact / N, A @ D @ G


def _comparable(update: Update) -> list[KroneckerBlock]:
    """Returns the blocks of A (x) G whose calls have the same examples."""
    return [
        block
        for block in update.blocks
        if isinstance(block, KroneckerBlock)
        and block in update.factors
        and not any(f.diagonal for f in block.factors)
        and _examples(update.uses_of(block))
    ]


def _examples(uses: Sequence[Use]) -> bool:
    sizes = {use.source.shape[0] for use in uses}
    masked = any(use.call.mask is not None for use in uses)
    return len(sizes) == 1 and not masked


def one_example(update: Update, seed: int) -> list[Finding]:
    """Checks F D = A D G, in a step on one example.

    Args:
        update: Of a batch of one example, on one process.
        seed: For D.
    """
    result = []
    for block in _comparable(update):
        rows = sum(part.rows[block][1] for part in update.parts)
        if rows != 1:
            continue
        rng = np.random.default_rng(seed)
        D = rng.normal(size=matrix_shape(block))
        exact, product = _products(update, block, update.count, D)
        result.append(
            judged(
                "one example",
                block.path,
                relative([product], [exact]),
                "A (x) G of one example with one row is not its Fisher p p^T: "
                f"look at the rows of {type(block).__name__}.",
                half=any(is_half(u.source) for u in update.uses_of(block)),
            )
        )
    return result


def beside(update: Update) -> list[Finding]:
    """Tells how near A (x) G is to the exact Fisher along V; no check."""
    found = {}
    for block in _comparable(update):
        D = in_float64(
            block.to_matrix([update.V[id(v)] for v in block.variables])
        )
        exact, product = _products(update, block, update.count, D)
        sizes = np.linalg.norm(exact), np.linalg.norm(product)
        if min(sizes) > 0:
            cosine = np.sum(exact * product) / (sizes[0] * sizes[1])
            found[block.path] = float(cosine), float(sizes[1] / sizes[0])
    if not found:
        return []
    cosines, ratios = zip(*found.values())
    least = min(found, key=lambda path: found[path][0])
    sentence = (
        f"the median cosine of A V G with F V over {len(found)} blocks, "
        f"{min(cosines):.2f} ({least}) to {max(cosines):.2f}; |A V G| is "
        f"{min(ratios):.2g} to {max(ratios):.2g} times |F V|."
    )
    figure = f"{np.median(cosines):.2f}"
    return [Finding("beside the exact Fisher", "", NOTE, figure, sentence)]
