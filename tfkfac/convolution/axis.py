"""A convolution's kernel on one axis of an image: what it sees, and borders."""

import dataclasses
import functools
import itertools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Axis:
    """A kernel on one axis of a padded image, with stride 1.

    Offset o of the kernel sees the positions of a box, which begins at
    o * dilation - low.

    Attributes:
        size: Of the kernel.
        dilation: Between its elements.
        space: The number of positions of the image.
        outputs: Of them in a box.
        low: How far before the image the first box begins.
        half: Whether D and -D are one, and D is not negative.
    """

    size: int
    dilation: int
    space: int
    outputs: int
    low: int
    half: bool

    @property
    def offsets(self) -> range:
        """All D, in elements of the kernel."""
        return range(0 if self.half else 1 - self.size, self.size)

    @property
    def reach(self) -> int:
        """The largest D, in positions."""
        return (self.size - 1) * self.dilation

    @functools.cached_property
    def borders(self) -> list[tuple[int, int]]:
        """All (q, D) of which a box that D begins in does not hold q."""
        found = []
        for q in range(self.space):
            ends = [
                other - o
                for o in self._outside(q)
                for other in range(o if self.half else 0, self.size)
                if 0 <= q + (other - o) * self.dilation < self.space
            ]
            found += [(q, D) for D in sorted(set(ends))]
        return found

    @property
    def _begins(self) -> list[int]:
        """Where the box of each offset of the kernel begins."""
        return [o * self.dilation - self.low for o in range(self.size)]

    @property
    def least(self) -> int:
        """The number of positions of the image in the box with the fewest."""
        held = [
            min(begin + self.outputs, self.space) - max(begin, 0)
            for begin in self._begins
        ]
        return max(min(held), 0)

    def _outside(self, q: int) -> list[int]:
        """Returns the offsets of the kernel whose box does not hold q."""
        return [
            o
            for o, begin in enumerate(self._begins)
            if not begin <= q < begin + self.outputs
        ]

    def weights(self) -> np.ndarray:
        """Returns the part of each D and each border in each pair of offsets.

        Returns:
            [size, size, D and borders] for the pair (o', o) that is D = o' - o
            apart: the sum over all q, less those that its box does not hold.
            With `half`, such that its transpose is the rest.
        """
        D, k = self.offsets, self.size
        weights = np.zeros([k, k, len(D) + len(self.borders)])
        for o, other in itertools.product(range(k), repeat=2):
            if other - o not in D:
                continue
            weight = 0.5 if self.half and other == o else 1.0
            weights[other, o, D.index(other - o)] = weight
            for i, (q, apart) in enumerate(self.borders, len(D)):
                if apart == other - o and o in self._outside(q):
                    weights[other, o, i] = -weight
        return weights
