"""What K-FAC would take of a model, without training it."""

from tfkfac.planning.planner import factor_storage, plan
from tfkfac.planning.records import LayerPlan, Plan, RankPlan, StepPlan

__all__ = [
    "LayerPlan",
    "Plan",
    "RankPlan",
    "StepPlan",
    "factor_storage",
    "plan",
]
