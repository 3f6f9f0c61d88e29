"""Files of a study: goes on from them, or says what is wrong in which."""

import dataclasses
import json
import math
import pathlib

import pytest
from sweeps import record, study

from tools.sweep import report, store, trials
from tools.sweep.store import Store, config
from tools.sweep.trials import DIVERGED, METRICS, MISSED, TUNING_SEED


def test_store_refuses_another_study_and_takes_more_cells(tmp_path):
    made = Store(tmp_path, study())
    made.add(record())
    with pytest.raises(ValueError, match="another command runs it"):
        Store(tmp_path, study())
    del made
    more = study(("sgd", "kfac"), (32, 64, 128, 256), seeds=(0, 1, 2))
    assert Store(tmp_path, more).records == [record()]
    with pytest.raises(ValueError, match="another study, with target 0.5"):
        Store(tmp_path, dataclasses.replace(more, target=0.4))
    config = json.loads((tmp_path / "study.json").read_text())
    assert trials.Study.from_config(config).config() == more.config()


def test_a_line_cut_short_is_dropped(tmp_path):
    made = Store(tmp_path, study())
    made.add(record())
    del made
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"arm": "sg')
    file = tmp_path / "trials.jsonl"
    assert store.read(file, study()) == [record()]
    Store(tmp_path, study()).add(record(1))
    assert store.read(file, study()) == [record(), record(1)]


SOUND = record()


@pytest.mark.parametrize(
    "line, reason",
    [
        ("3", "it is 3, not a dictionary"),
        ("null", "it is None, not a dictionary"),
        ("[" * 9999, "recursion"),
        (b"\xff\xfe\x00binary", "can't decode byte"),
        ({**SOUND, "steps": "x"}, "'steps'] is 'x', not a whole number fr"),
        ({**SOUND, "steps": True}, "'steps'] is True, not"),
        ({**SOUND, "arm": 3}, "'arm'] is 3, not a string"),
        ({**SOUND, "seconds": None}, "'seconds' is None, not"),
        ({**SOUND, "seconds": -1}, "'seconds' is -1, not a finite number fr"),
        ({**SOUND, "settings": {"momentum": 0.5}}, "are not learning_rate"),
        ({**SOUND, "settings": {"learning_rate": 9}}, "not from 0.01 to 2"),
        (
            {**SOUND, "settings": {"learning_rate": math.nan}},
            "'learning_rate'] is nan, not a finite number",
        ),
        ({**SOUND, "curve": {}}, "'curve' has no 'step'"),
        ({**SOUND, "curve": {**SOUND["curve"], "loss": []}}, "is empty"),
        ({**SOUND, "curve": {**SOUND["curve"], "loss": [1, 2]}}, "not whole"),
        ({**SOUND, "curve": {**SOUND["curve"], "step": [-9]}}, "-9, not a wh"),
        ({**SOUND, "curve": {**SOUND["curve"], "loss": [1e999]}}, "is inf"),
        ({**SOUND, "status": "ended"}, "is 'ended', not one of crashed, div"),
        ({**SOUND, "status": MISSED}, "is 'not reached', and its steps are 10"),
        ({**SOUND, "steps": None}, "is 'reached', and its steps are None"),
        ({**SOUND, "steps": 0}, "is 0, not a whole number from 1 on or null"),
        ({**SOUND, "index": -1}, "is -1, not a whole number from 0 on"),
        ({**SOUND, "arm": "newton"}, "arm 'newton' is none of study.json"),
        ({**SOUND, "batch_size": 65}, "batch_size 65 is none of study.json"),
        ({**SOUND, "seed": 7}, "seed 7 is none of study.json"),
        (SOUND, "it is there twice"),
        ({k: v for k, v in SOUND.items() if k != "curve"}, "it has no 'curve'"),
    ],
)
def test_a_line_that_is_no_trial_is_named(line, reason, tmp_path):
    """With the file and the mend; all other lines stay."""
    directory = tmp_path / "study"
    Store(directory, study()).add(SOUND)
    file = directory / "trials.jsonl"
    if not isinstance(line, bytes):
        line = (line if isinstance(line, str) else json.dumps(line)).encode()
    file.write_bytes(file.read_bytes() + line + b"\n")
    before = file.read_bytes()
    message = f"{file}: line 2 is damaged .*{reason}.*; remove it, and what"
    with pytest.raises(ValueError, match=message):
        Store(directory, study())
    with pytest.raises(SystemExit, match=f"--study_dir: {message}"):
        report.write(directory)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"arms": 3}, "'arms'] is 3, not a dictionary"),
        ({"arms": {"a": ["sgd"]}}, "of another length"),
        ({"arms": {"a": ["newton", []]}}, "is 'newton', not one of adam,"),
        ({"batch_sizes": 3}, "'batch_sizes'] is 3, not a list"),
        ({"batch_sizes": []}, "'batch_sizes'] is empty"),
        ({"batch_sizes": [-8]}, "is -8, not a whole number from 1 on"),
        ({"arms": {}}, "it has no arm"),
        ({"target": "x"}, "'target'] is 'x', not a finite number"),
        ({"target": math.nan}, "'target'] is nan, not a finite number"),
        ({"trainer": "os"}, "is 'os', not one of cifar, imagenet, lm1b, mn"),
        ({"search": "random"}, "'search'] is 'random', not one of grid, qu"),
        ({"trials": -3}, "'trials'] is -3, not a whole number from 1 on"),
        ({"spaces": {"sgd": {}}}, "sgd: write {'learning_rate'"),
        ({"spaces": {}}, "there is no space of 'sgd'"),
    ],
)
def test_a_study_of_another_form_is_named(change, reason, tmp_path):
    file = tmp_path / "study.json"
    file.write_text(json.dumps({**study().config(), **change}))
    message = f"{file}: is no description of a study .*{reason}"
    with pytest.raises(ValueError, match=message):
        config(file)
    with pytest.raises(SystemExit, match=message):
        report.write(tmp_path)


def test_trials_of_a_study_that_is_not_known_are_refused(tmp_path):
    """Those without a study.json would be taken for any study's."""
    Store(tmp_path, study()).add(record())
    (tmp_path / "study.json").unlink()
    with pytest.raises(ValueError, match="and no study.json, which says of"):
        Store(tmp_path, study())
    (tmp_path / "trials.jsonl").write_text("")  # As a kill may leave it.
    assert Store(tmp_path, study()).records == []


def test_a_line_that_was_removed_is_measured_again(tmp_path):
    """As the error of a damaged line says."""
    file = tmp_path / "trials.jsonl"
    made = Store(tmp_path, study())
    for index in range(3):
        made.add(record(index, steps=10 + index))
    made.add(record(0, seed=0))
    made.add(record(0, seed=1))
    del made
    lines = file.read_text().splitlines(keepends=True)

    def after_removal(number):
        file.write_text("".join(lines[:number] + lines[number + 1 :]))
        records = Store(tmp_path, study()).records
        assert trials.left(study(), "sgd", records) == 1
        task = trials.following(study(), "sgd", records)
        return task.index, task.seed

    assert after_removal(1) == (1, TUNING_SEED)
    assert after_removal(3) == (0, 0)


def test_older_trials_are_told_by_their_training_loss(tmp_path):
    """They were said to have diverged by their validation loss, too."""
    made = Store(tmp_path, study())
    curves = {
        "fell": ([2.3, 0.5, 0.0084], [1, 2, 3]),
        "rose": ([2.2, 2.3, 8.1], [1, 2, 3]),
        "fell to where it began": ([9.0, 2.3], [1, 2]),
        "of now": ([2.3, 0.5, 0.4], [0, 2, 3]),
    }
    for index, (losses, steps) in enumerate(curves.values()):
        found = record(index, DIVERGED)
        found["curve"] = {name: losses for name in METRICS} | {"step": steps}
        made.add(found)
    del made
    expected = [MISSED, DIVERGED, DIVERGED, DIVERGED]
    for records in (
        store.read(tmp_path / "trials.jsonl", study()),
        Store(tmp_path, study()).records,
    ):
        assert [r["status"] for r in records] == expected
    lines = (tmp_path / "trials.jsonl").read_text()
    assert lines.count('"diverged"') == 4  # The file stays.
    # Of one that diverged at once nothing is there, or empty lists.
    for index, lists in ((4, {}), (5, {n: [] for n in ("step", *METRICS)})):
        Store(tmp_path, study()).add(
            {**record(index, DIVERGED), "curve": lists}
        )
    assert len(Store(tmp_path, study()).records) == 6


def test_studies_of_before_are_read(tmp_path):
    """Their study.json has no `also`, `split_examples` and more."""
    Store(tmp_path, study()).add(record())
    file = tmp_path / "study.json"
    old = json.loads(file.read_text())
    newer = {"also": {}, "split_examples": 10_000}
    newer |= {"most_steps": None, "micro_batch": None}
    assert {name: old.pop(name) for name in newer} == newer
    file.write_text(json.dumps(old))
    made = trials.Study.from_config(config(file))
    assert made.config() == study().config()
    del made
    assert Store(tmp_path, study()).records == [record()]
    file.write_text(json.dumps({**old, "micro_batch": 0}))
    with pytest.raises(ValueError, match="'micro_batch' is 0, not a whole num"):
        config(file)


def test_trials_of_the_project_are_sound():
    folder = pathlib.Path(__file__).parent.parent / "docs" / "batch_size"
    found = trials.Study.from_config(config(folder / "study.json"))
    assert len(store.read(folder / "trials.jsonl", found)) > 100
