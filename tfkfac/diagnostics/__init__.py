"""What K-FAC would cost a model, and what it found of the curvature."""

from tfkfac.diagnostics.movement import PERCENTILES, movement_percentiles
from tfkfac.diagnostics.noise import Measurement, measure
from tfkfac.diagnostics.planning import factor_storage, plan
from tfkfac.diagnostics.records import LayerPlan, Plan, RankPlan, StepPlan
from tfkfac.diagnostics.spectra import (
    Direction,
    directions,
    eigenvalues,
    merged,
    power_law,
)

__all__ = [
    "PERCENTILES",
    "Direction",
    "LayerPlan",
    "Measurement",
    "Plan",
    "RankPlan",
    "StepPlan",
    "directions",
    "eigenvalues",
    "factor_storage",
    "measure",
    "merged",
    "movement_percentiles",
    "plan",
    "power_law",
]
