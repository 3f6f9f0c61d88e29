"""The programs as a person starts them: what they write and print."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfkfac
from trainers.configs import mnist
from trainers.data import images


def columns(path):
    """Returns the columns of a CSV file as lists of numbers."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows] for key in rows[0]}


def test_comparison(tmp_path):
    """The files and the printed lines of the program with two optimizers."""
    done = subprocess.run(
        [sys.executable, "-m", "trainers.mnist", "--dataset=digits"]
        + ["--compare=momentum,adam", "--epochs=3", "--verbose=0"]
        + [f"--model_dir={tmp_path}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    names = ["kfac", "momentum", "adam"]
    assert [line.split(":")[0] for line in lines[:3]] == names
    summary = json.loads((tmp_path / "summary.json").read_text())
    check_kfac(tmp_path, summary, lines[0])
    check_losses(tmp_path, summary, names)
    check_pictures(tmp_path)
    check_model(tmp_path, summary)


def check_kfac(path, summary, line):
    """It learns, and the log, the summary and the line say the same."""
    log = columns(path / "log.csv")
    assert log["step"] == [12, 23, 34]
    assert log["epoch"] == pytest.approx([n * 128 / 1437 for n in log["step"]])
    assert log["loss"][0] > 3 * log["loss"][1] > 6 * log["loss"][2]
    assert log["val_accuracy"][2] > 0.95
    lines_of_log = (path / "log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines_of_log]
    assert {key: [r[key] for r in records] for key in records[0]} == log
    assert summary["test_accuracy"] == log["val_accuracy"][2]
    assert summary["test_loss"] == log["val_loss"][2]
    assert summary["train_loss"] == log["loss"][2]
    assert summary["steps"] == 34
    assert summary["optimizer"] == "kfac"
    assert summary["settings"] == mnist.SETTINGS["kfac"].given()
    assert line.startswith(
        f"kfac: test accuracy {summary['test_accuracy']:.4f}, "
        f"test loss {summary['test_loss']:.4f} after 34 steps"
    )


def check_losses(path, summary, names):
    """All start with the same weights, on the same batches."""
    losses = columns(path / "loss.csv")
    assert list(losses) == ["step", *names]
    assert losses["kfac"][0] == losses["momentum"][0] == losses["adam"][0]
    for name in names:
        folder = path if name == "kfac" else path / f"compare_{name}"
        log = columns(folder / "log.csv")
        # Any single step's loss agrees with what Keras logged of the epochs.
        parts = np.split(losses[name], [12, 23])
        means = [part.mean() for part in parts]
        np.testing.assert_allclose(means, log["loss"], rtol=1e-5)
        assert log["loss"][2] < log["loss"][0]
    others = summary["compare"]
    assert [run["optimizer"] for run in others] == names[1:]
    assert [run["settings"] for run in others] == [
        mnist.SETTINGS[name].given() for name in names[1:]
    ]
    assert all(run["steps"] == summary["steps"] for run in others)
    assert all(summary["train_loss"] < run["train_loss"] for run in others)


def check_pictures(path):
    """They show every curve."""
    # matplotlib's first three colours: an optimizer each, in all panels.
    for color in ([31, 119, 180], [255, 127, 14], [44, 160, 44]):
        drawn = colored(path / "loss.png", color)
        assert drawn.shape == (630, 1950)
        for panel in np.split(drawn, 3, axis=1):
            assert panel.sum() > 200
    # Training and evaluation, of accuracy and loss; the learning rate.
    height = 1200 // 3
    for color, panels in (
        ([31, 119, 180], (0, 1)),
        ([255, 127, 14], (0, 1)),
        ([44, 160, 44], (2,)),
    ):
        drawn = colored(path / "curves.png", color)
        for panel in range(3):
            count = drawn[panel * height : (panel + 1) * height].sum()
            assert (count > 200) == (panel in panels)


def colored(path, color):
    """Returns where a picture has a color, [height, width]."""
    image = keras.utils.img_to_array(keras.utils.load_img(path))
    return np.all(image == color, axis=-1)


def check_model(path, summary):
    model = keras.models.load_model(path / "model.keras")
    tfkfac.attach(model)
    result = model.evaluate(
        images.load("digits").evaluation("test", 360), verbose=0
    )
    expected = [summary["test_loss"], summary["test_accuracy"]]
    np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_missing_data_is_reported_at_once(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "trainers.mnist", "--dataset=fashion_mnist"]
        + [f"--data_dir={tmp_path}", f"--model_dir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 5  # Of the processor's seconds.
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("--dataset=fashion_mnist: ")
    assert (
        f"tfds.builder('fashion_mnist', data_dir='{tmp_path}')"
        ".download_and_prepare()" in line
    )
    assert not (tmp_path / "run").exists()


def test_ctrl_c_leaves_a_whole_checkpoint(tmp_path):
    """In the middle of a long run, with the exit status of a Ctrl-C."""
    command = [sys.executable, "-m", "trainers.mnist", "--dataset=digits"]
    command += ["--optimizer=momentum", "--epochs=1000", "--verbose=2"]
    process = subprocess.Popen(
        [*command, f"--model_dir={tmp_path}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout.readline().startswith("momentum: step 12, ")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    last = output.splitlines()[-1]
    saved = sorted((tmp_path / "checkpoints").iterdir())[-1]
    assert last == (
        f"Interrupted after {int(saved.stem)} updates: {saved} is whole; go on "
        "with --resume"
    )
    assert keras.models.load_model(saved).count_params() == 13_706
