"""How often factors and inverses can be renewed for what they cost."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Overheads:
    """What the parts of a step cost, over the gradient step.

    Attributes:
        plain: What every step takes: U.
        factors: What a factor update adds.
        inversions: What inversions add.
    """

    plain: float
    factors: float
    inversions: float

    def mean(self, factor_period: int, inverse_period: int) -> float:
        """Returns the mean overhead of a step with these periods."""
        factors = self.factors / factor_period
        return self.plain + factors + self.inversions / inverse_period

    def suggest(self, budget: float) -> tuple[int, int] | None:
        """Returns the periods p of factors and q of inverses for a budget.

        Where plain + factors / p + inversions / q is the budget, p q is least
        with half of what is left for each part; as inverses are not worth
        renewing more often than factors, p = q if the inversions are the
        cheaper part. Both are rounded up, q to a multiple of p. None where
        `plain` alone is more than the budget.
        """
        left = budget - self.plain
        if left <= 0:
            return None
        if self.inversions <= self.factors:
            p = _above((self.factors + self.inversions) / left)
            return p, p
        p = _above(2 * self.factors / left)
        return p, p * _above(self.inversions / p / (left - self.factors / p))


def _above(value: float) -> int:
    """Returns the least positive integer that is not below a number."""
    return max(1, math.ceil(value))
