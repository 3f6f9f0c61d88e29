"""What K-FAC found of the curvature: spectra, noise, movement of factors."""

from tfkfac.analysis.movement import PERCENTILES, movement_percentiles
from tfkfac.analysis.noise import Measurement, measure
from tfkfac.analysis.spectra import (
    Direction,
    directions,
    eigenvalues,
    merged,
    power_law,
)

__all__ = [
    "PERCENTILES",
    "Direction",
    "Measurement",
    "directions",
    "eigenvalues",
    "measure",
    "merged",
    "movement_percentiles",
    "power_law",
]
