"""Which runs of a study are made, and which are read from the file."""

import dataclasses
import json
import math

import pytest
from timed_runs import PEERS, record

from tools.time_to_target import runs, tables
from tools.time_to_target.studies import Arm, Study


def quiet(directory):
    return runs.Runs(directory, show=lambda line: None)


def answers(monkeypatch, steps_of):
    """Has `steps_of(run)` answer in place of processes; returns what is
    asked."""
    asked = []

    def train(run):
        asked.append(run)
        steps, limit = steps_of(run), run["limit"]
        if steps and limit and steps > limit:
            steps = None
        return {**record("", 0, steps, steps and float(steps)), **run}

    monkeypatch.setattr(runs, "_train", train)
    return asked


def test_runs_go_on_from_the_file(tmp_path, monkeypatch):
    """A search gives settings up at the best steps so far."""
    steps = {2e-3: 40, 1e-2: 20}

    def steps_of(run):
        return steps.get(run["arguments"].get("learning_rate"))

    asked = answers(monkeypatch, steps_of)
    arms = {name: PEERS.arms[name] for name in ("kfac", "adam")}
    study = dataclasses.replace(PEERS, arms=arms)
    quiet(tmp_path).measure(study)
    assert len(asked) == 16 + 2 * len(study.seeds)
    assert [r["limit"] for r in asked[:16]] == [None] * 5 + [40] * 6 + [20] * 5
    best = {"learning_rate": 1e-2, "schedule": "constant"}
    turns = [(r["seed"], r["optimizer"]) for r in asked[16:]]
    assert turns == [(s, n) for s in study.seeds for n in ("kfac", "adam")]
    assert all(
        r["arguments"] == best for r in asked[16:] if r["optimizer"] == "adam"
    )
    quiet(tmp_path).measure(study)
    assert len(asked) == 16 + 2 * len(study.seeds)
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 22
    # What was not told yet is run again: the steps after the target.
    again = quiet(tmp_path)
    again.measure(dataclasses.replace(study, stay=True))
    assert len(asked) == 16 + 4 * len(study.seeds)
    assert len(again.records) == 22
    with pytest.raises(ValueError, match="another command runs it"):
        quiet(tmp_path)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"curve": [[5, 0.5]]}, "of another length"),
        ({"stay": None}, "'stay'] is None, not true or false"),
        ({"steps": "x"}, "'steps'] is 'x', not a whole number from 1 on or nu"),
        ({"steps": 9}, "its steps are 9, and its seconds are None"),
        ({"seconds": 9.0}, "its steps are None, and its seconds are 9"),
        ({"task": "gone"}, "'task'] is 'gone', not one of "),
        ({"optimizer": "newton"}, "'newton', not one of adam, adamw, kfac,"),
        ({"seed": -1}, "'seed'] is -1, not a whole number from 0 on"),
        ({"first_step_seconds": None}, "and no seconds of the first step"),
        ({"first_step_seconds": math.nan}, "is nan, not a finite number"),
        ({"curve": []}, "its curve is empty, and it has no failure"),
        ({"curve": [[0, 0.5, 1.0]]}, "0, not a whole number from 1 on"),
        ({"curve": [[5, 0.5, 1.0]] * 2}, "of its curve are not in order"),
        ({"failure": 3}, "'failure' is 3, not a string"),
    ],
)
def test_a_line_that_is_no_run_is_named(change, reason, tmp_path):
    file = tmp_path / "runs.jsonl"
    file.write_text(json.dumps({**record("adam", 0), **change}) + "\n")
    with pytest.raises(ValueError, match=f"{file}: line 1 .*{reason}"):
        quiet(tmp_path)


def test_a_run_that_diverged_is_sound():
    """Its losses may be NaN and infinite, and its curve empty."""
    runs.check(record("adam", 0, curve=[], failure="diverged"))
    curve = [[5, math.inf, 1.0], [10, math.nan, 2.0]]
    runs.check(record("adam", 0, curve=curve, worst_after=math.inf))


def test_settings_are_given_up_at_twice_the_best_of_the_peers_before(
    tmp_path, monkeypatch
):
    """K-FAC's steps are no measure of peers."""
    of_arms = {"kfac": 10, "adam": 30, "muon": 80}
    asked = answers(monkeypatch, lambda run: of_arms[run["optimizer"]])
    two = {"learning_rate": 1.0}, {"learning_rate": 2.0}
    arms = {name: Arm(name, two) for name in of_arms}
    study = Study(("digits_cnn",), arms, seeds=())
    quiet(tmp_path).measure(study)
    limits = [r["limit"] for r in asked]
    assert limits == [None, 10, None, 30, 60, 60]


def test_runs_beside_an_arm_have_twice_its_steps(tmp_path, monkeypatch):
    asked = answers(monkeypatch, lambda run: 30 if not run["arguments"] else 61)
    setting = {"damping": 0.1}
    arms = {"kfac": Arm("kfac"), "more": Arm("kfac", (setting,), "kfac")}
    study = Study(("digits_cnn",), arms, seeds=(0,))
    made = quiet(tmp_path)
    made.measure(study)
    assert [r["limit"] for r in asked] == [None, 60]
    # With a longer limit it has to be run again, with a shorter one not.
    arms = {"more": Arm("kfac", (setting,))}
    made.measure(dataclasses.replace(study, arms=arms))
    assert [r["limit"] for r in asked] == [None, 60, None]
    made.measure(study)
    assert len(asked) == 3 and len(made.records) == 2


def test_loss_after_steps_is_a_question_of_its_own(tmp_path, monkeypatch):
    asked = answers(monkeypatch, lambda run: None)
    study = Study(("gru",), {"kfac": Arm("kfac")}, {"gru": 7}, seeds=(0,))
    made = quiet(tmp_path)
    made.measure(study)
    made.measure(dataclasses.replace(study, steps=None))
    assert [r["after"] for r in asked] == [7, None]
    table = tables.rows(study, made.records)
    assert "| gru | kfac | 0.5 | 3.0 | 1.0 | 500 | 1.0 |" in tables.markdown(
        study, table
    )
