"""Which rank owns which part of a model: a cost model and a greedy rule.

Pure Python, deterministic: every rank computes the same.
"""

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Item:
    """What one owner takes as a whole: a block, or a variable without one.

    Attributes:
        inversion: The cost of an inversion, in multiplications.
        preconditioning: The cost of U for V, in multiplications.
        memory: The elements of its factors and inverses.
        gradient: The elements of its V, which is sent in every step.
        statistics: The elements that are sent in a step with a factor update.
    """

    inversion: float = 0.0
    preconditioning: float = 0.0
    memory: float = 0.0
    gradient: float = 0.0
    statistics: float = 0.0


_RESOURCES = tuple(field.name for field in dataclasses.fields(Item))
# How much further than the inversions, which are to be split best, others may
# be from their bounds.
_SLACK = {
    "inversion": 1.0,
    "preconditioning": 1.1,
    "memory": 1.05,
    "gradient": 1.2,
    "statistics": 1.1,
}


def factored_item(
    sides: Sequence[tuple[int, int, bool]], gradient: int
) -> Item:
    """Returns the item of a block with one factor or two.

    Args:
        sides: (groups, dim, whether it is diagonal) of each factor.
        gradient: The number of elements of V.
    """
    inversion = preconditioning = memory = statistics = 0
    for groups, dim, diagonal in sides:
        size = groups * dim * (1 if diagonal else dim)
        inversion += size if diagonal else groups * dim**3
        preconditioning += gradient * (1 if diagonal else dim)
        memory += 2 * size
        statistics += size if diagonal else groups * dim * (dim + 1) // 2
    return Item(inversion, preconditioning, memory, gradient, statistics)


def model_items(blocks: Sequence, alone: Sequence) -> list[Item]:
    """Returns the items of blocks, and of variables without one."""
    return [
        factored_item(
            [(f.groups, f.dim, f.diagonal) for f in block.factors],
            sum(math.prod(v.shape) for v in block.variables),
        )
        for block in blocks
    ] + [Item(gradient=math.prod(v.shape)) for v in alone]


def bounds(items: Sequence[Item], ranks: int) -> dict[str, float]:
    """Returns, for each resource, what no split over the ranks can go below.

    It is the larger of the mean over the ranks and the largest item.
    """
    return {
        r: max(
            sum(getattr(i, r) for i in items) / ranks,
            max((getattr(i, r) for i in items), default=0),
        )
        for r in _RESOURCES
    }


def loads(
    items: Sequence[Item], owners: Sequence[int], ranks: int
) -> list[dict[str, float]]:
    """Returns what each rank has of each resource."""
    result = [dict.fromkeys(_RESOURCES, 0.0) for _ in range(ranks)]
    for item, owner in zip(items, owners):
        for r in _RESOURCES:
            result[owner][r] += getattr(item, r)
    return result


def assign(items: Sequence[Item], ranks: int) -> list[int]:
    """Returns the owner of each item.

    Longest first: items come in the order of their largest share of any
    resource, and each goes to the rank whose fullest resource is then the
    least full, relative to the `bounds` times `_SLACK`. Moves and swaps of
    items of the fullest rank follow as long as they help.
    """
    least = bounds(items, ranks)
    shares = [
        [getattr(i, r) / (least[r] * s or 1.0) for r, s in _SLACK.items()]
        for i in items
    ]
    order = sorted(
        range(len(items)), key=lambda k: (-max(shares[k]), -sum(shares[k]), k)
    )
    filled = [[0.0] * len(_SLACK) for _ in range(ranks)]
    owners = [0] * len(items)
    for k in order:

        def key(rank, share=shares[k]):
            after = _add(filled[rank], share)
            return max(after), sum(after), rank

        owners[k] = owner = min(range(ranks), key=key)
        filled[owner] = _add(filled[owner], shares[k])
    while _improve(owners, shares, filled):
        pass
    return owners


def scatters(lengths: Sequence[int]) -> bool:
    """Whether each rank is sent its part of a sum, rather than all of it.

    Not where the longest part makes its rank receive more than an all-reduce
    would.

    Args:
        lengths: Of the parts, one for each rank.
    """
    return len(lengths) * max(lengths) <= 2 * sum(lengths)


def _add(a, b, sign=1):
    return [x + sign * y for x, y in zip(a, b)]


def _improve(owners, shares, filled) -> bool:
    """Makes the move or swap that empties the fullest rank most, if any."""
    full = max(range(len(filled)), key=lambda rank: max(filled[rank]))
    nothing = [0.0] * len(_SLACK)
    best, change = max(filled[full]) - 1e-6, None
    for k, owner in enumerate(owners):
        for j in [None, *range(len(owners))] if owner == full else []:
            targets = range(len(filled)) if j is None else [owners[j]]
            back = nothing if j is None else shares[j]
            difference = _add(shares[k], back, -1)
            for rank in targets:
                after = max(
                    *_add(filled[full], difference, -1),
                    *_add(filled[rank], difference),
                )
                if rank != full and after < best:
                    best, change = after, (k, j, rank, difference)
    if change is None:
        return False
    k, j, rank, difference = change
    owners[k] = rank
    if j is not None:
        owners[j] = full
    filled[full] = _add(filled[full], difference, -1)
    filled[rank] = _add(filled[rank], difference)
    return True
