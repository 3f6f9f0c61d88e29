"""What came of an update, in arrays, to be compared with another one."""

import dataclasses

import numpy as np

from tfkfac.verification.findings import (
    HALF_TOLERANCE,
    TOLERANCE,
    Finding,
    judged,
    relative,
)
from tfkfac.verification.layer_map import is_half
from tfkfac.verification.observer import Array, Update, in_float64

_NAMES = "input factor", "output factor", "factor"
_INVERSES = 50  # By how much inverses may make rounding larger.


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an update was made of, without the tensors of its step.

    Attributes:
        factors: By the path of the block and the number of the factor.
        V, U: By the id of the variable.
        blocks: The ids of the variables of each block, by its path.
        half: Whether layers run in half precision.
        is_mean: Whether the loss is a mean over its terms.
        is_complete: Whether the update was made.
        is_doubled: Whether all layers saw the same in both halves of the batch.
    """

    factors: dict[tuple[str, int], Array]
    V: dict[int, Array]
    U: dict[int, Array]
    blocks: dict[str, list[int]]
    half: bool
    is_mean: bool
    is_complete: bool
    is_doubled: bool

    @staticmethod
    def of(update: Update) -> "Outcome":
        """Returns that of an update."""
        calls = [
            use.call
            for part in update.parts
            for uses in part.uses.values()
            for use in uses
        ]
        return Outcome(
            factors={
                (block.path, i): x
                for block, found in update.factors.items()
                for i, x in enumerate(found)
            },
            V=update.V,
            U=update.U,
            blocks={
                b.path: [id(v) for v in b.variables] for b in update.blocks
            },
            half=any(is_half(call.pre_activation) for call in calls),
            is_mean=all(p.statistics.loss_is_mean() for p in update.parts),
            is_complete=update.is_complete,
            is_doubled=all(_is_doubled(call.inputs) for call in calls),
        )

    def gradient_norm(self) -> float:
        """Returns |V|."""
        return float(np.sqrt(sum(np.sum(x**2) for x in self.V.values())))

    def compare_factors(
        self, check: str, other: "Outcome", why: str
    ) -> list[Finding]:
        """Returns whether those of another update are the same.

        Args:
            check: What the check is called.
            other: The other update.
            why: What to say if they are not.
        """
        result = []
        for (path, i), x in self.factors.items():
            y = other.factors.get((path, i), x)
            size = float(np.linalg.norm(x)) or 1.0
            times = float(np.linalg.norm(y)) / size
            sentence = (
                f"its {_NAMES[min(i, 2)]} becomes {times:.4g} times as large; "
                f"{why}"
            )
            error = relative([y], [x])
            result.append(judged(check, path, error, sentence, half=self.half))
        return result

    def compare_gradients(
        self, check: str, other: "Outcome", ratio: float, why: str
    ) -> list[Finding]:
        """Returns whether V and U of another update are `ratio` times these.

        Args:
            check, other, why: As of `compare_factors`.
            ratio: The number.
        """
        result = []
        tolerance = HALF_TOLERANCE if self.half else TOLERANCE
        kinds = ("V", self.V, other.V, 1), ("U", self.U, other.U, _INVERSES)
        for name, mine, others, times in kinds:
            sizes = [float(np.linalg.norm(x)) for x in mine.values()]
            size = ratio * max(sizes, default=0.0) or 1.0
            for path, keys in self.blocks.items():
                error = sum(
                    float(np.linalg.norm(ratio * mine[key] - others[key]))
                    for key in keys
                    if key in mine
                )
                sentence = f"its {name} changes; {why}"
                bound = times * tolerance
                result.append(
                    judged(check, path, error / size, sentence, bound=bound)
                )
        return result


def _is_doubled(inputs) -> bool:
    x = in_float64(inputs)
    n = len(x) // 2
    return np.allclose(x[:n], x[n : 2 * n], rtol=1e-3, atol=1e-4)
