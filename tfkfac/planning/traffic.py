"""The bytes that `tfkfac.distributor` has each rank send in a step."""

import dataclasses
from collections.abc import Sequence

from tfkfac.distributed import agreement, assignment

KINDS = ("plain", "factors", "factors and inverses")


@dataclasses.dataclass(frozen=True)
class Part:
    """What one owner takes as a whole: a block, or a variable without one.

    Attributes:
        gradient: The elements of V.
        moments: For each sum of the statistics, what is sent of it.
        inverses: The elements of the inverses.
    """

    gradient: int
    moments: Sequence[int] = ()
    inverses: int = 0


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Who sends what, as the class of that name in `tfkfac.distributor` does.

    Args:
        parts: The parts.
        owners: The owner of each.
        ranks: The number of ranks, N.
        group_size: How many ranks hold an inverse, g.
        item_size: The bytes of a number.
        half: Whether statistics travel in float16.
    """

    parts: Sequence[Part]
    owners: Sequence[int]
    ranks: int
    group_size: int
    item_size: int = 4
    half: bool = False

    def sent(self, kind: str) -> list[float]:
        """Returns the bytes that each rank sends in a step of a kind.

        With the few numbers that go along, such as N. An all-reduce of n
        numbers counts 2 (N - 1) / N n, as a ring sends.
        """
        if self.ranks == 1:
            return [0.0]
        collectives = [self._gradients(), self._updates()]
        if kind != "plain":
            collectives.append(self._statistics())
        if kind == "factors and inverses":
            collectives.append(self._inverses())
        return [sum(of_rank) for of_rank in zip(*collectives)]

    def _sum(self, elements) -> list[int]:
        """Returns the sum over the parts of each owner."""
        sums = [0] * self.ranks
        for part, owner in zip(self.parts, self.owners):
            sums[owner] += elements(part)
        return sums

    def _all_reduce(self, length: int) -> list[float]:
        n = self.ranks
        return [self.item_size * 2 * (n - 1) / n * length] * n

    def _all_to_all(self, lengths, item_size) -> list[float]:
        return [item_size * (sum(lengths) - own) for own in lengths]

    def _reduce_scatter(self, lengths: list[int]) -> list[float]:
        if assignment.scatters(lengths):
            return self._all_to_all(lengths, self.item_size)
        return self._all_reduce(sum(lengths))

    def _gradients(self) -> list[float]:
        # Whether finite, D, the examples of each rank, digits of its numbers.
        head = 2 + self.ranks + agreement.LENGTH
        lengths = self._sum(lambda part: part.gradient)
        if self.group_size > 1:
            return self._all_reduce(head + sum(lengths))
        return self._reduce_scatter([head + own for own in lengths])

    def _statistics(self) -> list[float]:
        """N, and of each moment the number of its rows and what is sent.

        In half precision also its largest element; those three as pairs.
        """
        if self.half:
            lengths = self._sum(lambda p: sum(4 + n for n in p.moments))
            return self._all_to_all([2 + own for own in lengths], 2)
        lengths = self._sum(lambda part: sum(1 + n for n in part.moments))
        return self._reduce_scatter([1 + own for own in lengths])

    def _inverses(self) -> list[float]:
        if self.group_size == 1:
            return [0.0] * self.ranks
        times = self.item_size * (self.group_size - 1)
        lengths = self._sum(lambda part: part.inverses)
        return [times * (1 + own) for own in lengths]

    def _updates(self) -> list[float]:
        """U of the group and three sums, to one rank of each other group."""
        g, groups = self.group_size, self.ranks // self.group_size
        lengths = self._sum(lambda part: part.gradient)
        of_groups = [sum(lengths[i : i + g]) for i in range(0, self.ranks, g)]
        return [
            self.item_size * (groups - 1) * (3 + of_groups[rank // g])
            for rank in range(self.ranks)
        ]
