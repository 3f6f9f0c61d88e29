"""Checks of the factors: each against products with the layer's Jacobian."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tfkfac.blocks import (
    CurvatureBlock,
    EmbeddingBlock,
    RecurrentBlock,
    TiedEmbeddingBlock,
)
from tfkfac.blocks.columns import ConvolutionColumnsBlock
from tfkfac.blocks.factored import FactoredBlock
from tfkfac.verification import recurrent_sums
from tfkfac.verification.findings import (
    Finding,
    failed,
    judged,
    note,
    relative,
)
from tfkfac.verification.layer_map import LayerMap, UnclearColumnsError, is_half
from tfkfac.verification.observer import Update
from tfkfac.verification.sums import (
    UseSums,
    add_products,
    count_rows,
    masked,
    matrix_shape,
)
from tfkfac.verification.use import Array, in_float64

Total = Callable[[dict], dict]
CHECKS = ("input factor", "output factor")
_FEW = 4  # Elements of a diagonal that are looked at one by one.


def check(
    update: Update, block: CurvatureBlock, N: float, total: Total, seed: int
) -> list[Finding]:
    """Returns what is found of the factors of a block.

    Args:
        update: Of the block's optimizer.
        block: The block, of which there are calls.
        N: The number of loss terms, over all ranks.
        total: Returns sums over the ranks, for a dictionary of arrays.
        seed: For random vectors, the same on all ranks.
    """
    rng = np.random.default_rng(seed)
    uses, own = update.uses_of(block), update.factors.get(block)
    findings: list[Finding] = []
    expected: list[tuple] = []
    if isinstance(block, RecurrentBlock):
        expected = _recurrent(block, uses, N, update, total, rng)
        if not expected:
            return [_unknown(block, "it is a recurrent convolution")]
    elif not isinstance(block, FactoredBlock) or len(block.factors) > 2:
        return [_unknown(block, "it is of a kind of its own")]
    elif getattr(block, "balanced", False):
        return [_unknown(block, "tied='balanced' has traces instead")]
    elif len(block.factors) == 1:
        single = _single(block, uses, N, total, rng)
        expected = [("factor", block, 0, single)]
    else:
        try:
            findings, pair = _pair(block, uses, N, update, total, rng)
        except UnclearColumnsError as error:
            return [_unclear(block, error)]
        expected = [(k, block, i, x) for i, (k, x) in enumerate(pair.items())]
    if own is None:
        return findings  # They are another rank's.
    half = any(is_half(use.source) for use in uses)
    return findings + [
        compare(name, of, own[i], x, half) for name, of, i, x in expected if x
    ]


def _unclear(block, error) -> Finding:
    sentence = (
        f"{error}: `kernel_matrix` and `kernel_from_matrix` of "
        f"{type(block).__name__} do not fit the layer."
    )
    return failed(CHECKS[1], block.path, sentence)


def _unknown(block, reason) -> Finding:
    return note("factors", block.path, f"not checked, for {reason}.")


@dataclasses.dataclass
class Expected:
    """What a factor should do to vectors.

    Attributes:
        vectors: What it is multiplied with, [groups, dim].
        products: The results, likewise.
        sizes: By what they are called, numbers that a factor may be wrong by.
        places: (group, element) that are compared; None for all.
        has_bias: Whether its last row and column are of the bias.
        other: What the other factor does to the same vectors, if it can.
    """

    vectors: Array
    products: Array
    sizes: dict[str, float]
    places: list[tuple[int, int]] | None = None
    has_bias: bool = False
    other: Array | None = None


def _pair(
    block, uses, N, update, total, rng
) -> tuple[list[Finding], dict[str, Expected | None]]:
    """Returns (what is found of the rows, what A and G should do).

    A = sum a a^T / N, G = sum g g^T / R. Nothing where the columns of another
    rank are not clear; where those of this one are not, it raises, after the
    sums over the ranks, which wait for each other.
    """
    groups, d_in, d_out = matrix_shape(block)
    u, v = (rng.normal(size=(groups, n)) for n in (d_in, d_out))
    places = None
    if block.factors[0].diagonal and not isinstance(block, EmbeddingBlock):
        places = [
            (int(rng.integers(groups)), int(rng.integers(d_in)))
            for _ in range(_FEW)
        ]
        u = np.ones(u.shape)
    of_uses = [UseSums(use, block, _exchanged(block, use), rng) for use in uses]
    findings = count_rows(of_uses, update, block)
    mine = {
        "A": np.zeros(u.shape),
        "G": np.zeros(v.shape),
        "swapped": np.zeros(u.shape),
        "rows": np.array(sum(x.rows for x in of_uses)),
        "examples": np.array(_examples(update)),
        "unclear": np.array(0.0),
    }
    unclear = None
    try:
        for of_use in of_uses:
            add_products(mine, of_use, u, v, places, block)
    except UnclearColumnsError as error:
        unclear, mine["unclear"] = error, np.array(1.0)
    everyone = total(mine)
    if unclear is not None:
        raise unclear
    if everyone["unclear"]:
        return findings, {}
    R = float(everyone["rows"])
    sizes = {
        "the number of loss terms N": N,
        "the number of rows R": R,
        "the number of examples": float(everyone["examples"]),
    }
    A = Expected(
        u,
        everyone["A"] / N,
        sizes,
        places,
        has_bias=len(block.variables) > 1,
        other=everyone["swapped"] / R if u.shape == v.shape else None,
    )
    # What sees nothing but zeros shows no columns.
    seen = [(int(i), int(j)) for i, j in np.argwhere(~np.isnan(everyone["G"]))]
    G = Expected(v, everyone["G"] / R, sizes, seen)
    return findings, {CHECKS[0]: A, CHECKS[1]: G if seen else None}


def _exchanged(block, use) -> bool:
    """Whether a call is of s = W a, and adds its a to the second factor."""
    tied = isinstance(block, TiedEmbeddingBlock)
    return tied and use.call.part == "projection"


def _recurrent(block, uses, N, update, total, rng) -> list[tuple]:
    """Returns (name of the check, part, number of factor, Expected)."""
    vectors = [
        tuple(rng.normal(size=f.dim) for f in part.factors)
        for part in block.members
    ]
    if any(isinstance(m, ConvolutionColumnsBlock) for m in block.members):
        return []
    found = recurrent_sums.sums(block, uses, vectors)
    everyone = total(
        {
            (i, k): x
            for i, of_part in enumerate(found)
            for k, x in enumerate(of_part)
        }
    )
    result = []
    for i, (part, pair) in enumerate(zip(block.members, vectors)):
        R = float(everyone[i, 2])
        sizes = {
            "the number of loss terms N": N,
            "the number of rows R": R,
            "the number of examples": float(_examples(update)),
        }
        for k, (name, divisor) in enumerate(zip(CHECKS, (N, R))):
            expected = Expected(
                pair[k][np.newaxis],
                everyone[i, k][np.newaxis] / divisor,
                sizes,
                has_bias=k == 0 and part.bias is not None,
            )
            result.append((name, part, 2 * i + k, expected))
    return result


def _examples(update: Update) -> float:
    return float(sum(int(p.statistics.examples()) for p in update.parts))


def _single(block, uses, N, total, rng) -> Expected:
    """Returns what F = (1/N) sum_i p_i p_i^T should do, p_i of example i."""
    groups, dim, _ = matrix_shape(block)
    diagonal = block.factors[0].diagonal
    count = min(groups, _FEW) if not diagonal else min(2 * _FEW, groups * dim)
    w = rng.normal(size=(groups, dim))
    chosen = rng.permutation(groups)[:count]
    places = [(int(g), i) for g in chosen for i in range(dim)]
    if diagonal:
        flat = rng.permutation(groups * dim)[:count]
        places = [(int(k) // dim, int(k) % dim) for k in flat]
        w = np.ones(w.shape)
    products = np.zeros(w.shape)
    for use in uses:
        layer_map, g = LayerMap(use, block), in_float64(use.gradient)
        mask = masked(use)
        g = g if mask is None else g * mask
        for group in chosen if not diagonal else ():
            d = np.zeros((groups, dim, 1))
            d[group, :, 0] = w[group]
            products[group] += _along(layer_map, g, d)[group, :, 0]
        for group, i in places if diagonal else ():
            d = np.zeros((groups, dim, 1))
            d[group, i] = 1
            products[group, i] += _along(layer_map, g, d)[group, i, 0]
    sizes = {"the number of loss terms N": N}
    return Expected(w, total({"F": products})["F"] / N, sizes, places)


def _along(layer_map: LayerMap, g: Array, direction: Array) -> Array:
    """Returns sum_i p_i (p_i d): of each example i what comes through it."""
    axes = tuple(range(1, g.ndim))
    along = np.sum(g * layer_map.forward(direction), axis=axes, keepdims=True)
    return layer_map.backward(g * along)


def compare(
    name: str, block, factor: Array, expected: Expected, half: bool = False
) -> Finding:
    """Returns whether a factor does to vectors what it should.

    Args:
        name: Of the check.
        block: What it is of.
        factor: [groups, dim, dim], or [groups, dim] of a diagonal.
        expected: What it should do.
        half: Whether the layer runs in half precision.
    """
    found = product(factor, expected.vectors)
    x, y = found, expected.products
    if expected.places is not None:
        index = tuple(np.array(expected.places).T)
        x, y = x[index], y[index]
    return judged(
        name,
        block.path,
        relative([x], [y]),
        lambda: _explained(block, factor, found, x, y, expected),
        half=half,
    )


def product(factor: Array, vectors: Array) -> Array:
    """Returns each group's factor times its vector."""
    if factor.ndim == 2:
        return factor * vectors
    return np.einsum("gij,gj->gi", factor, vectors)


def _explained(block, factor, found, x, y, expected: Expected) -> str:
    """Says how a factor differs from what it should be."""
    kind = type(block).__name__
    if not np.any(x):
        return f"it is zero: {kind} took no rows."
    if expected.has_bias and factor.ndim == 3 and not factor[:, -1].any():
        return (
            "the bias column is missing: the last row and column are zero, and "
            f"the rows a of {kind} are to end in 1."
        )
    cosine = _cosine(x, y)
    if cosine > 0.999:
        ratio = float(np.sum(x * y) / np.sum(y * y))
        return (
            f"it is {_as_size(ratio, expected.sizes)}: `moments` of {kind} is "
            "to return plain sums over rows, which N or R divides once."
        )
    if expected.other is not None and _cosine(found, expected.other) > 0.99:
        return (
            f"it is the output factor: {kind} has A and G swapped; A is of the "
            "inputs, and comes first."
        )
    return (
        "its products with random vectors are not those of the layer's own "
        f"call (cosine {cosine:.2f}): look at how {kind} makes rows, at their "
        "order, strides, padding, dilation, groups and mask."
    )


def _as_size(ratio: float, sizes: dict[str, float]) -> str:
    """Returns what a factor was multiplied or divided by."""
    for what, n in sizes.items():
        for value, how in ((n, "multiplied"), (1 / n, "divided")):
            if abs(ratio / value - 1) < 1e-2:
                return f"{how} by {n:.6g}, {what}"
    return f"{ratio:.4g} times what it should be"


def _cosine(x: Array, y: Array) -> float:
    size = np.linalg.norm(x) * np.linalg.norm(y)
    return float(np.sum(x * y) / size) if size else 0.0


def misshapen(block: CurvatureBlock, shapes: Sequence[tuple]) -> Finding:
    """Returns what to say of moments that do not fit the factors."""
    own = [tuple(s.shape) for s in block.sums]
    swapped = "A and G are swapped: " if shapes[::-1] == own else ""
    return failed(
        CHECKS[0],
        block.path,
        f"{swapped}`moments` of {type(block).__name__} returns shapes "
        f"{list(shapes)}, and its factors have {own}.",
    )
