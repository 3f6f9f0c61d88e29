"""The benchmark of a step, on a small model."""

import json
import subprocess
import sys


def test_figures_of_one_run():
    run = subprocess.run(
        [sys.executable, "-m", "tools.step_benchmark", "--model=small_cnn",
         "--batch_size=4", "--factor_update_period=2", "--rounds=2",
         "--inverse_update_period=4", "--steps=5", "--children=1", "--json"],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["steps"] == 2 * 8  # Whole periods of 4, at least 5 steps.
    ratio = found["kfac_ms"] / found["baseline_ms"]
    assert abs(found["ratio"] - ratio) < 1e-9
    # A quarter of the steps has a refresh, another one factors alone.
    mean = (
        2 * found["plain_step_ms"]
        + found["factors_step_ms"]
        + found["refresh_step_ms"]
    ) / 4
    assert abs(mean - found["kfac_ms"]) < 1e-6 * mean
    assert found["kfac_median_ms"] <= found["kfac_slowest_ms"]
    assert found["kfac_state_mib"] > found["baseline_state_mib"] > 0
    assert found["kfac_peak_mib"] > 0 < found["baseline_peak_mib"]
