"""`tools.coverage`: models whose coverage is known."""

import json
import subprocess
import sys

import keras
import pytest

from tools import coverage


def test_an_application_is_covered_whole():
    row = coverage.coverage("MobileNet", coverage.build("MobileNet"))
    assert row["covered"] == 1 and not row["fallback"]
    assert row["parameters"] == 4_231_976  # As Keras counts them.
    assert not row["diagonal"]


def test_what_is_left_is_counted_by_its_reason():
    name = "graph_attention"
    row = coverage.coverage(name, coverage.build(name))
    assert row["fallback"] == {
        "no curvature block for GraphAttention": 2 * (100 * 100 + 2 * 100)
    }
    total = 144 * 100 + 101 * 100 + 2 * 10_200 + 101 * 7
    assert row["parameters"] == total
    assert row["covered"] == pytest.approx(1 - 20_400 / total)
    assert "20,400 no curvature block" in coverage.line(row)


def test_longer_sides_are_named():
    name = "vocabulary_head"
    row = coverage.coverage(name, coverage.build(name))
    (side,) = row["diagonal"].values()
    assert side == 20_000 and row["covered"] == 1
    assert "output_factor 20,000" in coverage.line(row)


def test_all_names_are_there():
    for name in coverage.APPLICATIONS:
        assert hasattr(keras.applications, name)


def test_command():
    command = [sys.executable, "-m", "tools.coverage", "--models=autoencoder"]
    table = subprocess.run(command, capture_output=True, text=True, check=True)
    assert table.stdout.splitlines()[1].startswith("autoencoder")
    run = subprocess.run([*command, "--json"], capture_output=True, text=True)
    (row,) = map(json.loads, run.stdout.splitlines())
    assert row["model"] == "autoencoder" and 0 < row["covered"] <= 1
    bad = [*command[:-1], "--models=ResNet"]
    run = subprocess.run(bad, capture_output=True, text=True)
    assert run.returncode != 0 and "ResNet50" in run.stdout + run.stderr
