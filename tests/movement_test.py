"""Percentiles of how far factors move."""

import numpy as np

from tfkfac import analysis


def test_percentiles_of_movements():
    """Over the layers, by the kind of the factor and the update."""
    rows = [
        {"update": 1, "a/input_factor": 0.0, "b/c/input_factor": 1.0},
        {
            "update": 4,
            "a/input_factor": 2.0,
            "b/c/input_factor": 2.0,
            "norm/factor": 3.0,
        },
    ]
    found = analysis.movement_percentiles(rows)
    assert [*found] == ["input_factor", "factor"]
    updates, values = found["input_factor"]
    np.testing.assert_array_equal(updates, [1, 4])
    np.testing.assert_allclose(values, [[0.05, 0.25, 0.5, 0.75, 0.95], [2] * 5])
    updates, values = found["factor"]
    np.testing.assert_array_equal(updates, [4])
    np.testing.assert_allclose(values, [[3] * 5])
