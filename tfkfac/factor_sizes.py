"""The bound on the sides of factors, and what it saves.

A side n of a layer with an n x m gradient costs 8 n^2 bytes (the factor and
its inverse), 2 n^3 FLOPs for an inversion and 2 n^2 m for each update, where
the layer's own passes take 6 r n m for r rows: n / 3 r times as much for U,
40 times with n = 20,000 and 160 rows. The default lets the longest side of
ResNet-50 pass, 3 x 3 x 512 = 4,608, at 162 MiB; at the bound it is 191 MiB, and
25 GFLOP an update with an inversion in ten. At 20,000, such as the logits of a
vocabulary have, it would be 3 GiB, and 1.6 TFLOP an update.
"""

import dataclasses
import math
from collections.abc import Sequence

from tfkfac.blocks import CurvatureBlock

DEFAULT = 5000


@dataclasses.dataclass(frozen=True)
class LimitedFactor:
    """A factor of which only the diagonal is kept for its size.

    Attributes:
        name: The path of the block, and the name of the factor.
        dim: The length of its side.
        state_bytes: What the whole factor and its inverse would take, more
            than their diagonals.
        inversion_flops: Of an inversion of the whole factor.
        update_flops: Of a product of its inverse and the gradient.
    """

    name: str
    dim: int
    state_bytes: int
    inversion_flops: int
    update_flops: int


def limit(
    blocks: Sequence[CurvatureBlock], size: int | None
) -> list[LimitedFactor]:
    """Makes factors with longer sides than `size` diagonal; returns which.

    Args:
        blocks: The blocks.
        size: The bound; None for none.
    """
    if size is None:
        return []
    found = []
    for block in blocks:
        before = list(block.factors)
        block.limit_factors(size)
        elements = sum(math.prod(v.shape) for v in block.variables)
        for old, new in zip(before, block.factors):
            if new.diagonal and not old.diagonal:
                groups, n = old.groups, old.dim
                width = max(v.value.dtype.size for v in block.variables)
                found.append(
                    LimitedFactor(
                        f"{block.path}/{old.name}",
                        n,
                        2 * groups * (n - 1) * n * max(width, 4),
                        2 * groups * n**3,
                        2 * elements * n,
                    )
                )
    return found


def sentence(limited: Sequence[LimitedFactor], size: int | None) -> str:
    """Returns what is said of limited factors; empty without any."""
    if not limited:
        return ""
    named = ", ".join(f"{x.name} ({x.dim:,})" for x in limited)
    saved = [
        sum(getattr(x, key) for x in limited)
        for key in ("state_bytes", "inversion_flops", "update_flops")
    ]
    return (
        f"sides longer than max_factor_size={size} are diagonal: {named}. "
        f"Whole they would take {saved[0] / 2**20:,.0f} MiB of state, "
        f"{saved[1] / 1e9:,.1f} GFLOP for each inversion and "
        f"{saved[2] / 1e9:,.1f} GFLOP for each update; "
        "KFAC(max_factor_size=None) keeps them whole."
    )
