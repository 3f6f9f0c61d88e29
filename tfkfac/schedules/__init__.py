"""Hyperparameters as functions of the update count."""

from tfkfac.schedules.hyperparameters import (
    Hyperparameter,
    Period,
    is_number,
    positive_integer,
    serialize,
    stored,
)
from tfkfac.schedules.rules import (
    CoupledMomentum,
    EpochPolynomialDecay,
    GrowingInterval,
    LateInterval,
    WarmupDamping,
)

__all__ = [
    "CoupledMomentum",
    "EpochPolynomialDecay",
    "GrowingInterval",
    "Hyperparameter",
    "LateInterval",
    "Period",
    "WarmupDamping",
    "is_number",
    "positive_integer",
    "serialize",
    "stored",
]
