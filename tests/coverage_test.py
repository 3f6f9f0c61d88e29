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


def test_layers_of_ones_own_are_seen_without_a_step():
    name = "graph_attention"
    row = coverage.coverage(name, coverage.build(name))
    total = 144 * 100 + 101 * 100 + 2 * 10_200 + 101 * 7
    assert row["parameters"] == total
    assert row["covered"] == 1 and row["blocks"] == 7


def test_what_is_left_is_counted_by_its_reason():
    class OwnCell(keras.layers.GRUCell):
        pass

    model = keras.Sequential(
        [
            keras.Input((5, 3)),
            keras.layers.RNN(OwnCell(2)),
            keras.layers.Dense(3),
        ]
    )
    row = coverage.coverage("own", model)
    (left,) = row["fallback"].values()
    assert left == (3 + 2 + 2) * 6
    total = left + 9
    assert row["covered"] == pytest.approx(1 - left / total)
    assert f"{left} its cell OwnCell is none" in coverage.line(row)


def test_recurrent_convolutions_are_covered_whole():
    row = coverage.coverage("frames", coverage.build("frames"))
    assert row["covered"] == 1 and not row["fallback"]


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
