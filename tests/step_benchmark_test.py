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


def test_figures_as_it_comes():
    run = subprocess.run(
        [sys.executable, "-m", "tools.step_benchmark", "--model=small_cnn",
         "--batch_size=4", "--as_it_comes", "--rounds=1", "--steps=3",
         "--optimizer=kfac_health", "--baseline=kfac_given",
         "--children=0", "--json"],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["steps"] == 3 and found["as_it_comes"]
    assert "plain_step_ms" not in found


STUB = """#!{python}
import json, sys
settings = json.loads(sys.argv[2])
assert sys.argv[1].endswith("torch_peer.py")
steps = range(settings["warm_up"], settings["warm_up"] + settings["steps"])
period = settings["factor_update_period"]
kfac = [3.0 if i % period == 0 else 1.0 for i in steps]
print(json.dumps({{"baseline": [1.0] * len(kfac), "kfac": kfac}}))
"""


def test_peer(tmp_path):
    """Beside the own figures stand those of another interpreter."""
    stub = tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(0o755)
    command = [sys.executable, "-m", "tools.step_benchmark", "--batch_size=2",
               "--factor_update_period=2", "--inverse_update_period=2",
               "--rounds=1", "--steps=2", "--children=0", "--json",
               "--peer=pytorch"]  # fmt: skip
    run = subprocess.run(
        [*command, f"--peer_python={stub}"],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["peer_ratio"] == 2.0
    assert found["peer_kfac_median_ms"] == 2000
    assert found["ratio"] > 0
    stub.write_text("#!/bin/sh\necho No module named torch >&2\nexit 1\n")
    run = subprocess.run(
        [*command, f"--peer_python={stub}"], capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "No module named torch. Install torch and kfac" in run.stderr
    assert "Traceback" not in run.stderr
    run = subprocess.run(
        [*command, "--model=resnet32"], capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "--peer is of --model=resnet20 only" in run.stderr
