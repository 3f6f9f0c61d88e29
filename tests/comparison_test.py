"""The comparison of optimizers: choice of settings, targets, resuming."""

import json

import pytest

from tools import comparison


def study(**grids):
    flags = ("--dataset=digits", "--epochs=1", "--batch_size=479")
    flags += ("--validation",)
    return comparison.Study("mnist", flags, ("val_loss", 2.0), grids)


def record(step, loss):
    kept = {"loss": loss, "val_loss": loss, "val_accuracy": 0.5}
    return {"step": step, "seconds": 0.5 * step, **kept}


def run(*losses, **more):
    log = [record(10 * i, loss) for i, loss in enumerate(losses, start=1)]
    return {"settings": {"learning_rate": 0.1}, "log": log, **more}


def test_settings_are_chosen_by_steps_then_by_loss():
    some = study()
    assert comparison.reached(some, run(3.0, 2.0, 1.9))["step"] == 20
    assert comparison.reached(some, run(3.0, 2.1)) is None
    ordered = [run(3.0, 1.9, 1.8), run(3.0, 3.0, 0.1), run(3.0), run(4.0)]
    ordered.append({"settings": {}, "log": []})  # Diverged.
    scores = [comparison.score(some, r) for r in ordered]
    assert scores == sorted(scores)
    assert len(set(scores)) == len(scores)


def test_table_has_medians_and_each_seed():
    runs = [run(3.0, x, test_accuracy=x / 4) for x in (1.5, 1.7, 2.5)]
    lines = comparison.table(study(), {"A": runs}).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert "| A | 20, 20, - | 10, 10, - | 20 | 1.7 | 0.5 | 0.425 |" in lines[2]


def test_runs_are_made_once(tmp_path, monkeypatch):
    path = tmp_path / "digits.jsonl"
    rates = [{"learning_rate": rate} for rate in (1e-9, 0.1)]
    some = study(sgd=("sgd", rates), adam=("adam", rates[1:]))
    monkeypatch.setattr(comparison, "SEEDS", (0,))
    best = comparison.compare(some, path, True)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    seeds = [line["seed"] for line in lines]
    assert seeds == [comparison.TUNING_SEED] * 2 + [0, 0]
    assert [line["label"] for line in lines] == ["sgd"] * 3 + ["adam"]
    assert best["sgd"][0]["settings"] == {"learning_rate": 0.1}
    assert all(line["log"][-1]["step"] == 3 for line in lines)
    monkeypatch.delattr(comparison, "train")
    assert comparison.compare(some, path, True) == best
    comparison.draw(some, best, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", comparison.STUDIES)
def test_studies_compare_equal_numbers_of_settings(name):
    grids = comparison.STUDIES[name].grids.values()
    assert len({len(settings) for _, settings in grids}) == 1
