"""A run of a trainer: steps, targets, averaged weights, evaluation."""

import itertools
import json
import time

import keras
import numpy as np
import pytest
from mnist_runs import check
from mnist_runs import train as run_mnist

from tfkfac.distributed import communicator
from trainers import (
    callbacks,
    checkpoints,
    evaluation,
    models,
    train,
)
from trainers.data import images
from trainers.steps import Steps


def test_steps_and_ends_of_epochs():
    """1,437 digits in batches of 128: 11.2 updates an epoch."""
    steps = Steps(1437, 128, 3)
    assert steps.total == 34
    assert steps.ends(None, None) == [12, 23, 34]
    assert steps.ends(None, 17) == [12, 17]
    assert steps.ends(10, None) == [10, 20, 30, 34]
    assert steps.ends(10, 30) == [10, 20, 30]
    assert Steps(1000, 100, 2).ends(None, None) == [10, 20]
    assert Steps(1437, 128, 10_000_000).ends(None, 17) == [12, 17]


@pytest.mark.parametrize(
    "argv",
    [
        ["--optimizer=sgd", "--learning_rate=1e20"],
        ["--optimizer=kfac", "--kl_clip=inf", "--momentum=0.9"],
    ],
)
def test_divergence_is_an_error(argv, tmp_path):
    run = check(*argv, "--epochs=3", f"--model_dir={tmp_path}")
    with pytest.raises(SystemExit, match="diverged within .* lower --learning"):
        train.main(run)
    assert not (tmp_path / "summary.json").exists()


def test_tensorboard_logs(tmp_path):
    summary = run_mnist(
        "--optimizer=sgd",
        "--tensorboard",
        "--steps=1",
        "--batch_size=1000",
        f"--model_dir={tmp_path}",
    )
    assert summary["steps"] == 1
    assert list((tmp_path / "tensorboard" / "sgd").glob("events*"))


def test_step_losses_are_those_of_the_batches():
    x = np.arange(12.0).reshape(12, 1)
    model = keras.Sequential([keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse")
    losses = callbacks.StepLosses()
    y = np.zeros_like(x)
    fit = dict(batch_size=4, shuffle=False, verbose=0, callbacks=[losses])
    model.fit(x, y, epochs=2, **fit)
    expected = np.mean(np.reshape(x**2, [3, 4]), axis=1)
    np.testing.assert_allclose(losses.values, np.tile(expected, 2), rtol=1e-6)


def test_parameters_of_small_cnn():
    small_cnn = models.maker("small_cnn")
    assert small_cnn((8, 8, 1), 10).count_params() == 13_706
    assert small_cnn((28, 28, 1), 10).count_params() == 105_866
    # The "Simple CNN" of Zhang et al. 2019, F.2.
    assert (
        models.maker("simple_cnn")((28, 28, 1), 10).count_params() == 3_274_634
    )


def test_a_clock_that_jumps_back_counts_for_nothing(tmp_path, monkeypatch):
    for name in ("time", "perf_counter"):
        now = itertools.count(time.time(), -60.0)
        monkeypatch.setattr(time, name, lambda now=now: next(now))
    summary = run_mnist(
        "--optimizer=sgd", "--steps=2", f"--model_dir={tmp_path}"
    )
    assert 0 < summary["seconds"] < 600


@pytest.mark.parametrize(
    "metric, value", [("val_accuracy", 0.5), ("loss", 2.1)]
)
def test_target_ends_a_run(metric, value, tmp_path):
    summary = run_mnist(
        "--optimizer=adam",
        f"--target_metric={metric}",
        f"--target_value={value}",
        "--evaluation_period=2",
        f"--model_dir={tmp_path}",
    )
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    good = [
        r[metric] <= value if "loss" in metric else r[metric] >= value
        for r in found
    ]
    assert len(good) > 1 and good == [False] * (len(good) - 1) + [True]
    assert summary["steps"] == found[-1]["step"] < 113
    assert summary["seconds"] == found[-1]["seconds"]
    target = {"metric": metric, "value": value, "reached": True}
    assert summary["target"] == target


def test_evaluation_counts_every_example_once(monkeypatch):
    """360 digits in batches of 100, of which the last is filled up."""
    digits = images.load("digits")
    keras.utils.set_random_seed(0)
    model = models.maker("small_cnn")((8, 8, 1), 10)
    ranks = communicator.LocalCommunicator()
    found = evaluation.Evaluation(model, ranks)(digits.evaluation("test", 100))
    x, y, _ = next(iter(digits.evaluation("test", 360)))
    logits = np.asarray(model(x), "float64")
    losses = np.log(np.exp(logits).sum(-1)) - logits[range(360), y]
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    accuracy = np.mean(logits.argmax(-1) == np.asarray(y))
    assert found["accuracy"] == pytest.approx(accuracy)


def test_averaged_weights_are_evaluated(tmp_path):
    """And training goes on from the weights themselves."""
    argv = ["--optimizer=sgd", "--learning_rate=0.5", "--epochs=2"]
    plain = run_mnist(*argv, f"--model_dir={tmp_path / 'plain'}")
    summary = run_mnist(*argv, "--ema=0.8", f"--model_dir={tmp_path / 'ema'}")
    assert summary["train_loss"] == plain["train_loss"]
    assert summary["test_loss"] != plain["test_loss"]
    saved = keras.models.load_model(tmp_path / "ema" / "model.keras")
    digits = images.load("digits")
    ranks = communicator.LocalCommunicator()
    batches = digits.evaluation("test", 128)
    found = evaluation.Evaluation(saved, ranks)(batches)
    assert found["loss"] == pytest.approx(summary["test_loss"], rel=1e-5)
    raw = keras.models.load_model(checkpoints.latest(tmp_path / "ema"))
    np.testing.assert_array_equal(
        raw.get_weights()[0],
        keras.models.load_model(
            checkpoints.latest(tmp_path / "plain")
        ).get_weights()[0],
    )
