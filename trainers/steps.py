"""How many updates a run makes, and where its epochs end."""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from fractions import Fraction


@dataclasses.dataclass(frozen=True)
class Steps:
    """Updates t of a run on N examples in batches of B: epoch e is t B / N.

    Attributes:
        train_size: N.
        batch_size: B.
        epochs: How many, also a fraction.
    """

    train_size: int
    batch_size: int
    epochs: float

    @property
    def per_epoch(self) -> float:
        """N / B, no whole number."""
        return self.train_size / self.batch_size

    @property
    def total(self) -> int:
        """ceil(epochs N / B)."""
        return self.at_epoch(self.epochs)

    def at_epoch(self, epoch: float) -> int:
        """Returns the first update at or after an epoch, ceil(epoch N / B)."""
        exact = Fraction(epoch).limit_denominator(10**6)
        return math.ceil(exact * self.train_size / self.batch_size)

    def boundary(self, place: str) -> int:
        """Returns the first update at an epoch, or at a part of the run in %.

        Raises:
            SystemExit: `place` is no number greater than 0, with or without %.
        """
        try:
            number = float(place.removesuffix("%"))
        except ValueError:
            number = -1.0
        if not 0 < number < math.inf:
            raise SystemExit(
                f"--decay_at={place}: must be epochs, such as 40, or parts of "
                "the run, such as 40%"
            )
        if place.endswith("%"):
            number *= self.epochs / 100
        return max(1, self.at_epoch(number))

    def epoch(self, step: int) -> float:
        """Returns the epochs completed after so many updates, a fraction."""
        return step / self.per_epoch

    def ends(self, period: int | None, limit: int | None) -> list[int]:
        """Returns the updates after which the run is evaluated.

        Args:
            period: From one to the next; None: epoch by epoch.
            limit: Where the run ends before its epochs do; None: nowhere.
        """
        last = min(self.total, limit or self.total)
        every: Iterable[int]
        if period is None:
            every = map(self.at_epoch, itertools.count(1))
        else:
            every = itertools.count(period, period)
        return [*itertools.takewhile(lambda end: end < last, every), last]


def adjusted(epochs: int, batch_size: int) -> float:
    """Returns epochs (log2(B / 128) + 1) (Ma et al. 2019, III-A).

    Raises:
        SystemExit: B is below 128.
    """
    if batch_size < 128:
        raise SystemExit(
            f"--adjust_epochs: --batch_size={batch_size} is below 128, where "
            "the rule begins; leave it out or give a larger batch"
        )
    return epochs * (math.log2(batch_size / 128) + 1)
