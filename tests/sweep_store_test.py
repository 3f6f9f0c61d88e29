"""Files of a study: goes on from them, or says what is wrong in which."""

import dataclasses
import json

import pytest
from sweeps import record, study

from tools import json_lines
from tools.sweep import report, trials
from tools.sweep.store import Store, check, config


def test_store_refuses_another_study_and_takes_more_cells(tmp_path):
    store = Store(tmp_path, study())
    store.add(record())
    with pytest.raises(ValueError, match="another command runs it"):
        Store(tmp_path, study())
    del store
    more = study(("sgd", "kfac"), (32, 64, 128, 256), seeds=(0, 1, 2))
    assert Store(tmp_path, more).records == [record()]
    with pytest.raises(ValueError, match="another study, with target 0.5"):
        Store(tmp_path, dataclasses.replace(more, target=0.4))
    config = json.loads((tmp_path / "study.json").read_text())
    assert trials.Study.from_config(config).config() == more.config()


def test_a_line_cut_short_is_dropped(tmp_path):
    store = Store(tmp_path, study())
    store.add(record())
    del store
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"arm": "sg')
    file = tmp_path / "trials.jsonl"
    assert json_lines.read(file, check) == [record()]
    store = Store(tmp_path, study())
    store.add(record(1))
    assert json_lines.read(tmp_path / "trials.jsonl", check) == [
        record(),
        record(1),
    ]


SOUND = record()


@pytest.mark.parametrize(
    "line, reason",
    [
        ("3", "it is 3, not a dictionary"),
        ("null", "it is None, not a dictionary"),
        ("[" * 9999, "recursion"),
        (b"\xff\xfe\x00binary", "can't decode byte"),
        ({**SOUND, "steps": "x"}, "'steps'] is 'x', not a whole number or nul"),
        ({**SOUND, "steps": True}, "'steps'] is True, not"),
        ({**SOUND, "arm": 3}, "'arm'] is 3, not a string"),
        ({**SOUND, "seconds": None}, "'seconds' is None, not"),
        ({**SOUND, "settings": {"momentum": 0.5}}, "no 'learning_rate'"),
        ({**SOUND, "curve": {}}, "its curve is not whole"),
        ({**SOUND, "curve": {**SOUND["curve"], "loss": []}}, "not whole"),
        ({**SOUND, "status": "ended"}, "status 'ended' is none"),
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
        ({"arms": {"a": ["newton", []]}}, "no arm 'newton'"),
        ({"batch_sizes": 3}, "'batch_sizes'] is 3, not a list"),
        ({"target": "x"}, "'target'] is 'x', not a whole number or a number"),
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
