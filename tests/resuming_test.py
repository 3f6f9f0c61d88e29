"""Runs that are resumed, and checkpoints from which none can be."""

import io
import json
import os
import shutil
import signal
import zipfile

import keras
import numpy as np
import pytest
from mnist_runs import resume, train

import tfkfac
from trainers import callbacks, checkpoints, run_directory
from trainers.data import images


def interrupt(monkeypatch, step):
    """Has the process get a SIGINT in a step of a call of `fit`."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(
        callbacks.StopOnNaN,
        "on_train_batch_begin",
        on_train_batch_begin,
        raising=False,
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["--optimizer=kfac", "--inverse_update_period=4", "--health"],
        ["--optimizer=kfac", "--schedule=linear", "--mixup=0.4"]
        + ["--gradient_accumulation_steps=2", "--update_interval=growing"],
        ["--optimizer=adam", "--ema=0.9", "--random_erasing"],
    ],
)
def test_resumed_run_is_the_uninterrupted_one(argv, tmp_path, monkeypatch):
    """On one rank, after Ctrl-C in mid-epoch: all bits of state and log."""
    argv = [*argv, "--epochs=2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train(*argv, f"--model_dir={whole}")
    with monkeypatch.context() as patch:
        interrupt(patch, 6)
        with pytest.raises(SystemExit) as interrupted:
            train(*argv, f"--model_dir={parts}")
    assert interrupted.value.code == 130
    assert not (parts / "summary.json").exists()
    step = 4 if "--gradient_accumulation_steps=2" in argv else 7
    assert checkpoints.latest(parts).name == f"{step:08d}.keras"
    found = train(*argv, f"--model_dir={parts}", "--resume")
    for key in ("steps", "train_loss", "test_loss", "test_accuracy"):
        assert found[key] == expected[key]
    last = [checkpoints.latest(folder) for folder in (whole, parts)]
    logs = [checkpoints.read(path)[0]["records"] for path in last]
    for record in sum(logs, []):
        del record["seconds"]
    assert logs[0] == logs[1]
    for a, b in zip(load(last[0]), load(last[1])):
        np.testing.assert_array_equal(a, b)
    if "--health" in argv:
        lines = [(p / "health.jsonl").read_text() for p in (whole, parts)]
        a, b = ([*map(json.loads, x.splitlines())] for x in lines)
        assert [r["update"] for r in a] == [12, 23]
        assert [r["update"] for r in b] == [7, 12, 23]
        assert a[-1]["layers"] == b[-1]["layers"]
        assert "23 updates in 2 epochs" in (parts / "health.html").read_text()


def load(path):
    """Returns the weights and the optimizer's state of a checkpoint."""
    model = keras.models.load_model(path)
    optimizer = model.optimizer
    if isinstance(optimizer, tfkfac.KFAC):
        tfkfac.attach(model)
    found = [v.numpy() for v in model.variables + optimizer.variables]
    if isinstance(optimizer, tfkfac.KFAC):
        state = optimizer.curvature.state()
        found += [state[key] for key in sorted(state)]
        assert len(state) > 10
    return found


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--epochs=3"], "epochs is 3 now and was 2"),
        (["--seed=1"], "seed is 1 now and was 0"),
        (["--learning_rate=0.5"], "learning_rate is 0.5 now and was 0.1"),
        (
            ["--optimizer=adam"],
            "optimizer is 'adam' now and was 'momentum'",
        ),
    ],
)
def test_another_configuration_is_not_resumed(argv, message, run_dir):
    path, before = run_dir
    with pytest.raises(SystemExit, match=f"{path} holds .*{message}"):
        resume(path, *argv)
    after = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert after == before


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--seed=1"], "seed is 0 now and was 1"),
        (["--optimizer=adam"], "optimizer is 'momentum' now and was 'adam'"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(argv, message, run_dir):
    """Of the same shapes, and in the place of the last one."""
    path, before = run_dir
    other = path.parent / "other"
    flags = ["--optimizer=momentum", "--epochs=2", "--steps=1", *argv]
    train(*flags, f"--model_dir={other}")
    last = checkpoints.latest(path)
    shutil.copy(checkpoints.latest(other), last)
    copied = last.read_bytes()
    with pytest.raises(SystemExit, match=f"{last} is of another.*{message}"):
        resume(path)
    after = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert after == {**before, last: copied}


STATE = {"configuration": {}, "step": 1, "begun": False, "seconds": 0.5,
         "records": [], "variables": 0, "ranks": 1}  # fmt: skip

RECORD = dict.fromkeys(
    ("step", "epoch", "loss", "accuracy", "val_loss", "val_accuracy",
     "learning_rate", "seconds"), 1,
)  # fmt: skip


def without(key):
    return json.dumps({k: v for k, v in STATE.items() if k != key})


@pytest.mark.parametrize(
    "state",
    [
        "[]",
        "3",
        *(without(key) for key in STATE),
        *(
            json.dumps(STATE | change)
            for change in (
                {"configuration": None},
                {"ranks": 0},
                {"records": 3},
                {"records": [3]},
                {"records": [{"step": "1"}]},
                {"records": [{"step": 1}]},
                {"records": [RECORD | {"loss": "low"}]},
                {"records": [RECORD | {"loss": [[]]}]},
                {"step": "15"},
                {"step": -5},
                {"step": 1.5},
                {"begun": 0},
                {"seconds": -1},
            )
        ),
    ],
)
def test_checkpoint_of_another_form_is_named(state, tmp_path):
    path = tmp_path / "00000001.keras"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("run.json", state)
        arrays = io.BytesIO()
        np.savez(arrays, none=np.zeros(1))
        file.writestr("of_ranks.npz", arrays.getvalue())
    with pytest.raises(SystemExit, match="00000001.keras is corrupt"):
        checkpoints.read(path)


def test_a_flipped_byte_of_a_checkpoint_is_told_or_means_nothing(tmp_path):
    """Each of the file: what zip says of the members, too."""
    path = tmp_path / "00000001.keras"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("run.json", json.dumps(STATE | {"variables": 1}))
        arrays = io.BytesIO()
        np.savez(arrays, **{"0/0": np.arange(3.0)})
        file.writestr("of_ranks.npz", arrays.getvalue())
    content = path.read_bytes()
    told = 0
    for place, byte in enumerate(content):
        damaged = bytearray(content)
        damaged[place] = byte ^ 0xFF
        path.write_bytes(damaged)
        try:
            state, ((array,),) = checkpoints.read(path)
        except SystemExit as error:
            assert f"{path} is corrupt (" in str(error)
            told += 1
        else:
            assert state == STATE | {"variables": 1}
            np.testing.assert_array_equal(array, np.arange(3.0))
    assert told > 0.5 * len(content)


def test_a_checkpoint_of_another_step_is_refused(run_dir):
    path, before = run_dir
    last = checkpoints.latest(path)
    other = last.with_name("00000099.keras")
    shutil.copy(last, other)
    with pytest.raises(SystemExit, match=f"{other} is corrupt .*step=23.*rem"):
        resume(path)
    after = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert after == {**before, other: before[last]}


@pytest.mark.parametrize("spoil", ["cut", "flip"])
def test_corrupt_checkpoint_is_named(spoil, run_dir):
    path, before = run_dir
    file = checkpoints.latest(path)
    content = bytearray(file.read_bytes())
    if spoil == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(SystemExit, match="00000023.keras is corrupt .*remove"):
        resume(path)
    after = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert after == {**before, file: bytes(content)}
    # Without it, the run goes on from the one before.
    file.unlink()
    assert resume(path)["steps"] == 23


def test_finished_run_is_resumed_as_it_is(run_dir):
    """Also beside a copy that a user has made of one of its checkpoints."""
    path, _ = run_dir
    last = checkpoints.latest(path)
    mine = shutil.copy(last, last.with_name("00000023-mine.keras"))
    assert checkpoints.latest(path) == last
    expected = json.loads((path / "summary.json").read_text())
    found = resume(path)
    for key in ("train_loss", "test_loss", "steps", "seconds"):
        assert found[key] == expected[key]
    run_directory.clear(path)
    left = {p for p in path.rglob("*") if p.is_file()}
    assert left - {path / ".lock"} == {mine}


@pytest.mark.parametrize(
    "argv, steps",
    [
        # Reached at the end of the first epoch, 12 steps.
        (["--target_metric=val_accuracy", "--target_value=0.05"], 15),
        (["--steps=13"], 15),
        (["--steps=5"], 15),
        (["--evaluation_period=7"], 21),
    ],
)
def test_a_begun_part_is_ended(argv, steps, tmp_path):
    """So that the summary, the log and the model are of the same step."""
    flags = ["--optimizer=sgd", "--epochs=2", f"--model_dir={tmp_path}"]
    train(*flags, "--steps=15", "--target_metric=loss", "--target_value=0.001")
    limit = [] if "--steps" in argv[0] else [f"--steps={steps}"]
    summary = train(*flags, *argv, *limit, "--resume")
    assert summary["steps"] == steps
    model = keras.models.load_model(tmp_path / "model.keras")
    assert int(model.optimizer.iterations) == steps
    _, accuracy = evaluated(model)
    assert summary["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)


def evaluated(model):
    """Returns the loss and the accuracy on the test split."""
    (batch,) = images.load("digits").evaluation("test", 360)
    x, y, _ = batch
    return model.evaluate(x, y, verbose=0)


def test_resume_needs_a_checkpoint_of_a_run_that_has_a_log(tmp_path):
    argv = ["--optimizer=sgd", "--steps=2", "--keep_checkpoints=0"]
    argv.append(f"--model_dir={tmp_path}")
    train(*argv)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(SystemExit, match="has the log of a run"):
        train(*argv, "--resume")
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert after == before


def test_checkpoints_are_kept_by_number(tmp_path):
    argv = ["--optimizer=sgd", "--steps=5", "--evaluation_period=1"]
    for keep, expected in ((2, [4, 5]), (-1, [1, 2, 3, 4, 5]), (0, [])):
        path = tmp_path / str(keep)
        train(*argv, f"--keep_checkpoints={keep}", f"--model_dir={path}")
        found = sorted(path.glob("checkpoints/*"))
        assert [p.name for p in found] == [f"{n:08d}.keras" for n in expected]
