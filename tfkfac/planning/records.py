"""What a plan consists of."""

import dataclasses
from typing import Any

from tfkfac.planning import tables


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """One block, or one variable without one.

    Attributes:
        path: Of the block, or of the variable.
        block: The name of its class; "Adam" or "plain gradient" without one.
        factors: The sides of the factors, as `KFAC.summary` prints them.
        parameters: Their number.
        owner: The rank that has the factors and inverts them.
        factor_bytes: Of the running averages, on the owner.
        inverse_bytes: Of the inverses, on each rank of the owner's group.
        gradient_flops: Of the forward and backward pass of a rank's batch.
        factor_flops: Of the second moments of a rank's batch.
        inversion_flops: Of the inversions.
        preconditioning_flops: Of U for V.
    """

    path: str
    block: str
    factors: str
    parameters: int
    owner: int
    factor_bytes: int = 0
    inverse_bytes: int = 0
    gradient_flops: int = 0
    factor_flops: int = 0
    inversion_flops: int = 0
    preconditioning_flops: int = 0


@dataclasses.dataclass(frozen=True)
class RankPlan:
    """What is not the same on all ranks.

    Attributes:
        rank: The rank.
        factor_bytes, inverse_bytes: Of its state.
        inversion_flops: In an update with inversions.
        preconditioning_flops: In each update.
        sent: The bytes that it sends, by the kind of step.
    """

    rank: int
    factor_bytes: int
    inverse_bytes: int
    inversion_flops: int
    preconditioning_flops: int
    sent: dict[str, float]


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """One kind of step.

    Attributes:
        kind: "gradient", forward and backward pass alone; "plain", where
            nothing is due; "factors"; "factors and inverses".
        flops: Of the rank that has the most.
        overhead: They over those of "gradient", less 1.
        sent: The bytes that a rank sends in it, in the mean.
        most_sent: Those of the rank that sends the most.
    """

    kind: str
    flops: int
    overhead: float
    sent: float = 0.0
    most_sent: float = 0.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `tfkfac.plan` returns.

    Attributes:
        model: The name of the model.
        settings: The arguments of `plan`.
        parameters: The number of trainable ones.
        dense_bytes: Of the factors in float32 as square matrices.
        packed_bytes: Of their upper triangles, which is what is sent.
        momentum_bytes: Of the momenta, and Adam's moments, on each rank.
        layers: The blocks, then what has none.
        ranks: The ranks.
        steps: The kinds of steps.
        sampled_flops: Of the further backward pass of sampled targets.
        overhead: Mean step over the gradient step, less 1, in FLOPs, with the
            periods of `settings`.
        suggested: The periods by the names of their arguments, and their
            "overhead"; None without a budget, and where none meets it.
        uncounted: Operations whose FLOPs are not known, loops above all.
    """

    model: str
    settings: dict[str, Any]
    parameters: int
    dense_bytes: int
    packed_bytes: int
    momentum_bytes: int
    layers: list[LayerPlan]
    ranks: list[RankPlan]
    steps: list[StepPlan]
    sampled_flops: int
    overhead: float
    suggested: dict[str, float] | None
    uncounted: list[str]

    def step(self, kind: str) -> StepPlan:
        """Returns one of `steps` by its kind."""
        return next(s for s in self.steps if s.kind == kind)

    def to_dict(self) -> dict[str, Any]:
        """Returns it as numbers, strings, lists and dictionaries."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return tables.report(self)
