"""What came of an update, in arrays, to be compared with another one."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from tfkfac.verification.findings import (
    HALF_TOLERANCE,
    TOLERANCE,
    Finding,
    failed,
    judged,
    relative,
)
from tfkfac.verification.inverses import MOST
from tfkfac.verification.layer_map import is_half
from tfkfac.verification.observer import Update
from tfkfac.verification.use import Array, in_float64

_NAMES = "input factor", "output factor", "factor"
_INVERSES = 50  # By how much inverses may make rounding larger.
_FLOOR = 0.05  # Of the largest block: the size of one that is smaller.


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
        return _norm(self.V.values())

    def compare_factors(
        self, check: str, other: "Outcome", why: str, times: float = 1.0
    ) -> list[Finding]:
        """Returns whether those of another update are the same.

        Args:
            check: What the check is called.
            other: The other update.
            why: What to say if they are not.
            times: By how much the bound is wider than that of other checks.
        """
        result = []
        for (path, i), x in self.factors.items():
            name, y = _NAMES[min(i, 2)], other.factors.get((path, i))
            if y is None:
                result.append(failed(check, path, f"it has no {name}; {why}"))
                continue
            size = float(np.linalg.norm(x)) or 1.0
            ratio = float(np.linalg.norm(y)) / size
            sentence = f"its {name} becomes {ratio:.4g} times as large; {why}"
            error = relative([y], [x])
            bound = self._bound(times)
            result.append(judged(check, path, error, sentence, bound=bound))
        return result

    def _bound(self, times: float) -> float:
        return min(times * (HALF_TOLERANCE if self.half else TOLERANCE), MOST)

    def compare_gradients(
        self,
        check: str,
        other: "Outcome",
        ratio: float,
        why: str,
        times: float = 1.0,
    ) -> list[Finding]:
        """Returns whether V and U of another update are `ratio` times these.

        Errors are relative to the norm of the block, or to a part of that of
        the largest block where it is less.

        Args:
            check, other, why, times: As of `compare_factors`.
            ratio: The number.
        """
        result = []
        kinds = (
            ("V", self.V, other.V, self._bound(times)),
            ("U", self.U, other.U, self._bound(max(times, _INVERSES))),
        )
        for name, mine, others, bound in kinds:
            own = {
                path: [key for key in keys if key in mine]
                for path, keys in self.blocks.items()
            }
            sizes = {p: _norm(mine[key] for key in own[p]) for p in own}
            floor = _FLOOR * max(sizes.values(), default=0.0)
            for path, keys in own.items():
                apart = _norm(ratio * mine[k] - others[k] for k in keys)
                size = ratio * max(sizes[path], floor) or 1.0
                sentence = f"its {name} changes; {why}"
                result.append(
                    judged(check, path, apart / size, sentence, bound=bound)
                )
        return result


def _norm(arrays: Iterable[Array]) -> float:
    return float(np.sqrt(sum(np.sum(x**2) for x in arrays)))


def _is_doubled(inputs) -> bool:
    x = in_float64(inputs)
    n = len(x) // 2
    return np.allclose(x[:n], x[n : 2 * n], rtol=1e-3, atol=1e-4)
