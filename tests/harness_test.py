"""What the trainers share: flags, directories, callbacks, models."""

import json

import keras
import numpy as np
import pytest
from absl import flags

from trainers import command_line, extras, harness, mnist, output
from trainers.models import MODELS


def check(*argv):
    """Returns the run of a command line."""
    args = flags.FlagValues()
    command_line.define_flags(mnist.TRAINER, args)
    args(["mnist", "--verbose=0", *argv])
    return command_line.check(mnist.TRAINER, args)


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--dataset=cats", "dataset=cats: .*digits"),
        ("--model=resnet", "model=resnet: .*small_cnn"),
        ("--optimizer=newton", "optimizer=newton: .*kfac"),
        ("--epochs=0", "epochs=0: 0 is not a positive integer"),
        ("--batch_size=-1", "batch_size=-1: -1 is not a positive integer"),
        ("--learning_rate=0", "learning_rate=0.0: must be greater than 0"),
        ("--learning_rate=nan", "learning_rate=nan: must be greater than 0"),
        ("--damping=-1", "damping=-1.0: must be greater than 0"),
        ("--momentum=1", "momentum=1.0: must be at least 0 and less than 1"),
    ],
)
def test_bad_value(flag, message):
    with pytest.raises(flags.IllegalFlagValueError, match=message):
        check(flag)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--batch_size=1438"], "--batch_size=1438: .*1,437 .*at most"),
        (["--compare=adam,newton"], "--compare: 'newton' is no optimizer"),
        (["--compare=kfac"], "--compare: kfac is trained already"),
        (["--compare=adam,adam"], "--compare: adam is trained already"),
        (["--optimizer=adam", "--damping=1"], "--damping is no setting of"),
        (["--model_dir=file/run"], "--model_dir=file/run: cannot write"),
        (["--model_dir=file"], "--model_dir=file: cannot write"),
    ],
)
def test_bad_run(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SystemExit, match=message):
        check(*argv)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


def test_missing_package_is_named():
    with pytest.raises(SystemExit, match=r"pip install 'tfkfac\[plot\]'"):
        extras.require("no_such_package", "plot", "--compare")


def test_flags_override_settings(tmp_path):
    run = check(
        "--damping=0.5",
        "--inverter=eigen",
        "--kl_clip=inf",
        "--compare=momentum",
        f"--model_dir={tmp_path}",
    )
    changed = {"damping": 0.5, "inverter": "eigen", "kl_clip": None}
    assert run.settings["kfac"] == {**mnist.SETTINGS["kfac"], **changed}
    assert run.settings["momentum"] == mnist.SETTINGS["momentum"]


def test_another_run_is_kept(tmp_path):
    model_dir = f"--model_dir={tmp_path}"
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("kept")
    with pytest.raises(SystemExit, match="summary.json of another run"):
        check(model_dir)
    assert (tmp_path / "summary.json").read_text() == "{}"
    check(model_dir, "--overwrite")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_default_directories_are_fresh(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [str(check().model_dir) for _ in range(3)]
    assert found == [f"runs/digits_kfac{end}" for end in ("", "_2", "_3")]


def test_whole_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "summary.json"
    output.write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        output.write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"loss": 1.0}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "argv",
    [
        ["--optimizer=sgd", "--learning_rate=1e20"],
        ["--optimizer=kfac", "--kl_clip=inf", "--momentum=0.9"],
    ],
)
def test_divergence_is_an_error(argv, tmp_path):
    run = check(*argv, "--epochs=3", f"--model_dir={tmp_path}")
    with pytest.raises(SystemExit, match="diverged in.*lower --learning_rate"):
        harness.main(run)
    assert not (tmp_path / "summary.json").exists()


def test_tensorboard_logs(tmp_path):
    summary = harness.main(
        check(
            "--optimizer=sgd",
            "--tensorboard",
            "--epochs=1",
            "--batch_size=1000",
            f"--model_dir={tmp_path}",
        )
    )
    assert summary["steps"] == 1
    assert list((tmp_path / "tensorboard" / "sgd").glob("train/events*"))


def test_step_losses_are_those_of_the_batches():
    x = np.arange(12.0).reshape(12, 1)
    model = keras.Sequential([keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse")
    losses = harness.StepLosses()
    y = np.zeros_like(x)
    fit = dict(batch_size=4, shuffle=False, verbose=0, callbacks=[losses])
    model.fit(x, y, epochs=2, **fit)
    expected = np.mean(np.reshape(x**2, [3, 4]), axis=1)
    np.testing.assert_allclose(losses.values, np.tile(expected, 2), rtol=1e-6)


def test_parameters_of_small_cnn():
    small_cnn = MODELS["small_cnn"]
    assert small_cnn((8, 8, 1), 10).count_params() == 13_706
    assert small_cnn((28, 28, 1), 10).count_params() == 105_866
