"""The runs behind the guide."""

import math

import pytest

from tools import symptoms


def test_a_run_tells_what_became_of_it():
    found = symptoms.train(symptoms.RUNS["stopping"], epochs=2, seed=0)
    assert found["epochs"] == 2 and found["skipped"] == 0
    assert found["last"] < found["first"] < 3
    assert found["best_validation"] <= found["validation"] + 1e-6
    assert found["accuracy"] > 0.5 and found["ended"] == ""
    cells = symptoms.row(symptoms.RUNS["stopping"], found).split(" | ")
    assert len(cells) == symptoms.HEAD.splitlines()[0].count(" | ") + 1
    assert cells[0].endswith("early stopping") and cells[1] == "2"


def test_a_run_without_a_finite_example_ends_by_a_sentence():
    found = symptoms.train(symptoms.RUNS["all_nan"], epochs=1, seed=0)
    assert "max_skipped_steps=10" in found["ended"]
    assert found["skipped"] > 10 and math.isnan(found["last"])


def test_inputs_are_changed_as_named():
    x = symptoms.digits().x
    changed = symptoms.RUNS["flat_units"].change(x)
    assert changed.mean() == pytest.approx(500, rel=1e-3)
    assert changed.std() == pytest.approx(100, rel=1e-3)
    broken = symptoms.RUNS["one_nan"].change(x)
    assert [math.isnan(v.sum()) for v in broken[:2]] == [True, False]
