"""What K-FAC would cost a model, before it is trained."""

from tfkfac.diagnostics.planning import factor_storage, plan
from tfkfac.diagnostics.records import LayerPlan, Plan, RankPlan, StepPlan

__all__ = [
    "LayerPlan",
    "Plan",
    "RankPlan",
    "StepPlan",
    "factor_storage",
    "plan",
]
