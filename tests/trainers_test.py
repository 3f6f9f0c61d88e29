"""All trainers and kinds of presets on two ranks; runs that are resumed."""

import fcntl
import json
import re

import numpy as np
import pytest
import small_data
from distributed_test import launch

from tools.fault_campaign.trained import weights
from trainers import configs

# Few layers, so that graphs are quick; data and path are those of the preset.
MODELS = {
    "imagenet": "small_cnn_bn",
    "cifar": "small_cnn_bn",
    "mnist": "small_cnn",
    "lm1b": "small_transformer",
}
PRESETS = configs.trainers_of_presets()
GHOSTS = "zhang_resnet32"  # With a model that has them.
OPTIMIZERS = {
    "muon": ["--ema=0.9"],
    "adamw": ["--gradient_accumulation_steps=2", "--schedule=linear"],
    "sgd": ["--ema=0.5", "--weight_decay_mode=l2", "--weight_decay=0.1"],
}
RESUMED_RUNS = ("norms last", "norms ended", "factors ended")
_SHORT = ["--dataset=digits", "--epochs=2", "--batch_size=64"]
_SHORT += ["--keep_checkpoints=-1"]
RESUMED = {  # The moving statistics of batch norm are each rank's own.
    "norms": ["--model=resnet8_bn", "--optimizer=momentum", *_SHORT],
    "factors": ["--model=small_cnn", "--steps_per_execution=2", *_SHORT],
}
DIFFERENT = {
    "seed": ["--dataset=digits", "--seed=RANK"],
    "data_dir": ["--dataset=digits", "--data_dir=/data/RANK"],
    # Of which rank 0 would make the tokens, for rank 1 to wait for others.
    "vocabulary": ["--dataset=pydocs", "--vocabulary=30RANK"],
}
TOKENS = ["--dataset=pydocs", "--vocabulary=300", "--length=16", "--packed=0"]
TOKENS += ["--evaluation_period=3", "--steps=6", "--batch_size=8"]
TOKENS += ["--optimizer=adam"]


def of_preset(name, data_dir):
    """Returns the command of two steps of a preset."""
    trainer = PRESETS[name].name
    model, size = MODELS[trainer], 8
    if name == GHOSTS:
        model, size = "resnet8_ghost", 64
    argv = [f"--preset={name}", f"--data_dir={data_dir}", "--steps=2"]
    argv += [f"--model={model}", f"--batch_size={size}"]
    argv += ["--keep_checkpoints=0"]
    if name.startswith("ma_"):
        argv.append("--noadjust_epochs")  # Which needs batches of 128.
    if trainer == "lm1b":
        argv += ["--vocabulary=60", "--length=16"]
    return [trainer, argv]


def of_optimizer(name):
    argv = ["--dataset=digits", f"--optimizer={name}", "--steps=3"]
    return ["mnist", [*argv, *OPTIMIZERS[name]]]


def commands(folder, data_dir):
    """Returns the commands of the two ranks by name."""
    found = {name: of_preset(name, data_dir) for name in PRESETS}
    found |= {name: of_optimizer(name) for name in OPTIMIZERS}
    for name, argv in RESUMED.items():
        found[f"{name} whole"] = ["cifar", argv]
        if name == "norms":
            # After the last step of an epoch, before what ends it.
            found["norms last"] = ["cifar", argv, 22]
            found["norms last, resumed"] = ["cifar", [*argv, "--resume"]]
        found[f"{name} ended"] = ["cifar", argv, 2]
        found[f"{name} ended, resumed"] = ["cifar", [*argv, "--resume"]]
    found["tokens"] = ["lm1b", [*TOKENS, f"--text_dir={data_dir}"]]
    for name, argv in DIFFERENT.items():
        trainer = "lm1b" if "pydocs" in argv[0] else "mnist"
        found[f"different {name}"] = [trainer, argv]
    found["taken"] = ["mnist", ["--dataset=digits"]]
    for name, command in found.items():
        command[1] = [
            *command[1],
            f"--model_dir={folder / name.split(',')[0]}",
        ]
    return found


def write_data(path):
    """Writes the data sets of the presets, small."""
    for name in ("imagenet2012", "svhn_cropped", "mnist", "fashion_mnist"):
        small_data.write(path, name)
    small_data.write(path, "lm1b")
    # Enough for a group of the ghost batch on each rank.
    rng = np.random.default_rng(0)
    columns = {
        split: small_data.images(rng, size, (32, 32, 3))
        for split, size in (("train", 80), ("test", 16))
    }
    examples = {
        split: {"image": x, "label": y} for split, (x, y) in columns.items()
    }
    small_data.store(path, "cifar10", examples)


def execute(ranks, folder, of_names):
    """Returns what came of each command, run one after the other."""
    file = folder / "commands.json"
    file.write_text(json.dumps(list(of_names.values())))
    launch(ranks, "trainers_program.py", file, timeout=900)
    results = json.loads((folder / "commands.json.out").read_text())
    return dict(zip(of_names, results))


def test_on_two_ranks(tmp_path):
    """One test, so that several workers do not repeat the runs."""
    data_dir, folder = tmp_path / "data", tmp_path / "runs"
    data_dir.mkdir()
    folder.mkdir()
    write_data(data_dir)
    (folder / "taken").mkdir()
    with (folder / "taken" / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        results = execute(2, folder, commands(folder, data_dir))
    for name in PRESETS:
        check_preset(name, PRESETS[name].presets[name], folder, results[name])
    check_against_one_process(results, tmp_path)
    check_tokens(folder / "tokens", results["tokens"])
    for name in RESUMED_RUNS:
        check_resumed(name, folder, results)
    check_refused(folder, results)


def check_preset(name, preset, folder, result):
    """Two steps, and all that a run leaves behind."""
    assert isinstance(result, dict), (name, result)
    assert (result["steps"], result["ranks"]) == (2, 2), name
    assert result["dataset"] == preset.dataset
    assert result["optimizer"] == preset.optimizer
    assert np.isfinite(result["train_loss"]), name
    saved = json.loads((folder / name / "summary.json").read_text())
    assert saved["train_loss"] == result["train_loss"]
    expected = {"log.jsonl", "log.csv", "curves.png", "model.keras"}
    found = {path.name for path in (folder / name).iterdir()}
    assert expected < found and "checkpoints" not in found, name


def check_against_one_process(results, folder):
    """With Muon, averaged weights, micro-steps and penalties: the same run."""
    alone = {name: of_optimizer(name) for name in OPTIMIZERS}
    for name, command in alone.items():
        command[1] = [*command[1], f"--model_dir={folder / name}"]
    for name, expected in execute(1, folder, alone).items():
        for key in ("train_loss", "test_loss", "test_accuracy"):
            close = pytest.approx(expected[key], rel=1e-3)
            assert results[name][key] == close, (name, key)


def check_tokens(folder, result):
    """Sentences by themselves, padded."""
    records = read_log(folder)
    assert [r["step"] for r in records] == [3, 6]
    assert result["model"] == "small_transformer"
    assert 0 < records[-1]["val_loss"] < np.log(300) + 1
    assert records[-1]["loss"] < records[0]["loss"]


def check_refused(folder, results):
    """On both ranks, or the next run would have hung; nothing is written."""
    for name in DIFFERENT:
        message = f"rank 1: --{name} is .*1, on rank 0 it is .*0; give all"
        assert re.match(message, results[f"different {name}"]), results
        assert not (folder / f"different {name}").exists()
    assert "taken: another job runs in it" in results["taken"]
    assert [p.name for p in (folder / "taken").iterdir()] == [".lock"]


def check_resumed(name, folder, results):
    """After an end in mid-epoch: all bits of weights, state and log.

    By a signal to one of the ranks in the first epoch, "last" by one in the
    last step of it.
    """
    kind = name.split()[0]
    first, second = results[name], results[f"{name}, resumed"]
    assert first == 130 and second["steps"] == 45
    saved = {int(p.stem) for p in (folder / name / "checkpoints").iterdir()}
    assert {23, 45} <= saved
    whole = weights(folder / f"{kind} whole" / "model.keras")
    resumed = weights(folder / name / "model.keras")
    assert len(whole) > 20 and set(whole) == set(resumed)
    for key, value in whole.items():
        np.testing.assert_array_equal(value, resumed[key], f"{name} {key}")
    logs = [read_log(folder / run) for run in (f"{kind} whole", name)]
    for record in sum(logs, []):
        del record["seconds"]
    assert logs[0] == logs[1] and len(logs[0]) == 2


def read_log(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
