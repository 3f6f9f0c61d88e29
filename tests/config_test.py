"""The flags as typed fields, and the runs that each program has."""

import dataclasses
import os
import subprocess
import sys
import typing

import pytest

from trainers import (
    command_line,
    configs,
    flag_definitions,
    launch,
    models,
    refusals,
)
from trainers.config import Settings, TextConfig, changed

TRAINERS = [configs.trainer(name) for name in configs.NAMES]
RUNS = {
    f"{trainer.name} {name}": (trainer, run)
    for trainer in TRAINERS
    for name, run in {
        "default": trainer.default,
        **trainer.of_datasets,
        **trainer.presets,
    }.items()
}


def is_of(value, kind):
    """Returns whether a value is one of an annotation."""
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple)
    if typing.get_args(kind):
        return any(is_of(value, k) for k in typing.get_args(kind))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is kind


@pytest.mark.parametrize("name", RUNS)
def test_values_are_of_their_types(name):
    trainer, run = RUNS[name]
    assert run.dataset in trainer.datasets and run.model in trainer.models
    assert {*trainer.models} <= {*models.NAMES, *models.LANGUAGE_NAMES}
    for config in (run, *run.settings.values()):
        kinds = typing.get_type_hints(type(config))
        for field in dataclasses.fields(config):
            if field.metadata:
                value = getattr(config, field.name)
                assert is_of(value, kinds[field.name]), (field.name, value)


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda t: t.name)
def test_a_run_is_what_its_flags_give(trainer):
    """All of them, on the command line, make the same run."""
    for name, run in trainer.presets.items():
        argv = [f"--preset={name}", "--dry_run", "--data_dir=/nowhere"]
        found = command_line.parse(trainer, argv)
        own = {"preset": name, "dry_run": True, "data_dir": "/nowhere"}
        assert found.config == dataclasses.replace(run, **own)
        settings = run.settings[run.optimizer].given()
        refusals.drop_periods(settings)
        assert found.settings[run.optimizer] == settings
        words = [
            f"--{key}={','.join(v) if isinstance(v, tuple) else v}"
            for key, v in {**dataclasses.asdict(run), **settings}.items()
            if key not in ("settings", "compare") and v is not None
        ]
        again = command_line.parse(trainer, [*words, *argv[1:]])
        assert again.configuration() == found.configuration()


def test_help_has_the_flags_in_groups():
    text = flag_definitions.help_of(configs.trainer("cifar"), "Trains.")
    assert text.startswith("Trains.\n")
    groups = [line[:-1] for line in text.splitlines() if line[-1:] == ":"
              and line[0].isalpha()]  # fmt: skip
    assert groups == ["data", "model", "optimizer", "run"]
    parts = dict(zip(groups, text.split("\n\n")[-4:]))
    assert "--batch_size" in parts["data"] and "--mixup" in parts["data"]
    assert "--damping" in parts["optimizer"]
    assert "ma_kfac, ma_sgd" in parts["run"]
    assert "--vocabulary" not in text
    plain = " ".join(text.split())
    said = "Momentum. The default is 0.9 for kfac, momentum, nesterov, 0.95 for"
    assert said in plain
    assert "With --dataset=digits it is 0.5 for kfac, 0.9 for mom" in plain
    assert "With --dataset=digits it is 12." in plain
    assert "With --dataset=digits it is linear." in plain


def test_a_flag_that_is_misspelt_is_guessed():
    with pytest.raises(SystemExit, match="Did you mean: learning_rate"):
        command_line.parse(configs.trainer("mnist"), ["--lerning_rate=3"])


def test_changed_settings_keep_the_others():
    base = {"kfac": Settings(momentum=0.9, damping=0.1), "sgd": Settings()}
    found = changed(base, kfac=Settings(momentum=0.0))
    assert found["kfac"].given() == {"momentum": 0.0, "damping": 0.1}
    assert found["sgd"] is base["sgd"]
    assert base["kfac"].momentum == 0.9


def test_what_a_run_depends_on():
    """No path, and nothing of how much is told."""
    run = TextConfig(dataset="pydocs", model="m", batch_size=1, epochs=1)
    free = {
        field.name
        for field in dataclasses.fields(run)
        if field.metadata.get("may_change")
    }
    assert free == {
        "data_dir", "text_dir", "compare", "preset", "steps",
        "evaluation_period", "target_metric", "target_value", "model_dir",
        "overwrite", "resume", "keep_checkpoints", "tensorboard", "health",
        "dry_run", "json", "ranks", "verbose",
    }  # fmt: skip


@pytest.mark.parametrize("flag", ["--help", "-?"])
def test_help_is_printed_and_a_lost_stdout_is_named(flag):
    command = [sys.executable, "-m", "trainers.mnist", flag]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "--learning_rate" in done.stdout
    full = os.open("/dev/full", os.O_WRONLY)
    lost = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
    os.close(full)
    assert lost.returncode == 1
    assert lost.stderr.decode().startswith("stdout cannot be written (No space")


def test_ranks_compare_what_the_flags_come_to(monkeypatch, tmp_path):
    """A preset may be what another rank has by default, and the reverse."""
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    compared = []
    monkeypatch.setattr(launch, "require_same_flags", compared.append)
    for argv in (["--epochs=30"], []):
        argv = ["--preset=ma_kfac", "--dataset=digits", *argv]
        argv.append(f"--model_dir={tmp_path / str(len(compared))}")
        command_line.parse(configs.trainer("cifar"), argv)
    assert [found["epochs"] for found in compared] == [30, 100]
    assert compared[0].keys() == compared[1].keys() >= {"damping", "schedule"}


def test_groups_of_ranks_divide_them(monkeypatch):
    monkeypatch.setenv("HOROVOD_SIZE", "3")
    argv = ["--strategy=2", "--batch_size=129", "--dry_run"]
    with pytest.raises(SystemExit, match="groups of 2 do not divide 3 ranks"):
        command_line.parse(configs.trainer("mnist"), argv)
