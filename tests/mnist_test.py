"""The trainer `mnist`: what a run writes, and its data."""

import csv
import json
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import flags

from trainers import command_line, data, harness, mnist


def check(*argv):
    """Returns the run of a command line."""
    args = flags.FlagValues()
    command_line.define_flags(mnist.TRAINER, args)
    args(["mnist", "--verbose=0", *argv])
    return command_line.check(mnist.TRAINER, args)


def columns(path):
    """Returns the columns of a CSV file as lists of numbers."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows] for key in rows[0]}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """The files and the printed lines of the program with two optimizers."""
    path = tmp_path_factory.mktemp("run")
    done = subprocess.run(
        [sys.executable, "-m", "trainers.mnist", "--dataset=digits"]
        + ["--compare=momentum,adam", "--epochs=3", "--verbose=0"]
        + [f"--model_dir={path}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return path, done.stdout.splitlines()


def test_kfac_learns_digits(comparison):
    path, lines = comparison
    log = columns(path / "log.csv")
    assert log["epoch"] == [0, 1, 2]
    assert log["loss"][0] > 3 * log["loss"][1] > 6 * log["loss"][2]
    assert log["val_accuracy"][2] > 0.95
    summary = json.loads((path / "summary.json").read_text())
    assert summary["test_accuracy"] == pytest.approx(log["val_accuracy"][2])
    assert summary["test_loss"] == pytest.approx(log["val_loss"][2], rel=1e-5)
    assert summary["train_loss"] == pytest.approx(log["loss"][2])
    assert summary["steps"] == 3 * (1437 // 128)
    assert summary["optimizer"] == "kfac"
    assert summary["settings"] == mnist.SETTINGS["kfac"]
    assert lines[0].startswith(
        f"kfac: test accuracy {summary['test_accuracy']:.4f}, "
        f"test loss {summary['test_loss']:.4f} after 33 steps"
    )


def test_comparison_is_from_the_same_start_on_the_same_batches(comparison):
    path, lines = comparison
    losses = columns(path / "loss.csv")
    names = ["kfac", "momentum", "adam"]
    assert [line.split(":")[0] for line in lines[:3]] == names
    assert list(losses) == ["step", *names]
    assert losses["kfac"][0] == losses["momentum"][0] == losses["adam"][0]
    for name, log in zip(names, ("log", "log_momentum", "log_adam")):
        log = columns(path / f"{log}.csv")
        # Any single step's loss agrees with what Keras logged of the epochs.
        means = np.reshape(losses[name], [3, 11]).mean(axis=1)
        np.testing.assert_allclose(means, log["loss"], rtol=1e-5)
        assert log["loss"][2] < log["loss"][0]
    summary = json.loads((path / "summary.json").read_text())
    others = summary["compare"]
    assert [run["optimizer"] for run in others] == names[1:]
    assert [run["settings"] for run in others] == [
        mnist.SETTINGS[name] for name in names[1:]
    ]
    assert all(run["steps"] == summary["steps"] for run in others)
    assert all(summary["train_loss"] < run["train_loss"] for run in others)


def test_picture_shows_every_optimizer(comparison):
    path, _ = comparison
    image = keras.utils.img_to_array(keras.utils.load_img(path / "loss.png"))
    assert image.shape == (630, 1500, 3)
    # matplotlib's first three colours, in both panels.
    for color in ([31, 119, 180], [255, 127, 14], [44, 160, 44]):
        drawn = np.all(image == color, axis=-1)
        assert drawn[:, :750].sum() > 200 and drawn[:, 750:].sum() > 200


def test_model_is_saved(comparison):
    path, _ = comparison
    model = keras.models.load_model(path / "model.keras")
    result = model.evaluate(data.load("digits").test(64), verbose=0)
    summary = json.loads((path / "summary.json").read_text())
    expected = [summary["test_loss"], summary["test_accuracy"]]
    np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_digits_are_split_for_good():
    digits = data.load("digits")
    x, y = next(iter(digits.examples("train").batch(2000)))
    x_test, y_test = next(iter(digits.test(2000)))
    assert x.shape == (digits.train_size, 8, 8, 1)
    assert x_test.shape == (360, 8, 8, 1)
    assert x_test.dtype == tf.float32
    assert (np.min(x_test), np.max(x_test)) == (0, 1)
    counts = np.bincount(y_test)
    np.testing.assert_array_equal(
        counts, [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    )
    assert np.sum(np.bincount(y)) == 1437
    again = next(iter(data.load("digits").test(2000)))
    np.testing.assert_array_equal(again[0], x_test)


def epochs_of(seed, count=2):
    batches = data.load("digits").train(128, seed)
    return np.stack(
        [np.stack([x for x, _ in batches]) for _ in range(count)]
    )  # [epoch, step, example, ...]


def test_order_is_a_function_of_the_seed():
    first = epochs_of(seed=3)
    assert first.shape == (2, 11, 128, 8, 8, 1)
    np.testing.assert_array_equal(first, epochs_of(seed=3))
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, epochs_of(seed=4))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_tfds_on_disk(name, tmp_path):
    written = write_tfds(name, tmp_path)
    found = data.load(name, str(tmp_path))
    assert (found.train_size, found.classes) == (48, 10)
    assert found.image_shape == (28, 28, 1)
    for split, batches in (
        ("train", found.train(48, seed=0)),
        ("test", found.test(100)),
    ):
        (images, labels), (x, y) = written[split], next(iter(batches))
        # The files are in an order of their own: compare image by image.
        order, order_read = by_pixels(images), by_pixels(x)
        x, y = np.take(x, order_read, axis=0), np.take(y, order_read)
        np.testing.assert_allclose(x, images[order] / 255, rtol=1e-6)
        np.testing.assert_array_equal(y, labels[order])


def by_pixels(images):
    """Returns the order of the images by their first pixels."""
    pixels = np.reshape(images, [len(images), -1])
    return np.lexsort(pixels[:, :8].T)


def write_tfds(name, data_dir):
    """Writes a small data set in the format of tensorflow-datasets.

    An image is noise with a bright column where its label says.
    """
    builder = tfds.builder(name, data_dir=data_dir)
    generator = np.random.default_rng(0)
    written = {}
    for split, size in (("train", 48), ("test", 16)):
        labels = generator.integers(10, size=size)
        images = generator.integers(100, size=(size, 28, 28, 1))
        images[np.arange(size), :, 2 * labels + 4] = 255
        written[split] = images.astype("uint8"), labels
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version=str(builder.version),
        data_dir=data_dir,
        features=builder.info.features,
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices(
                {"image": images, "label": labels}
            )
            for split, (images, labels) in written.items()
        },
    )
    return written


def test_kfac_trains_on_tfds(tmp_path):
    write_tfds("mnist", tmp_path / "data")
    summary = harness.main(
        check(
            "--dataset=mnist",
            f"--data_dir={tmp_path / 'data'}",
            f"--model_dir={tmp_path / 'run'}",
            "--batch_size=16",
            "--epochs=5",
        )
    )
    assert summary["steps"] == 15 and summary["parameters"] == 105_866
    log = columns(tmp_path / "run" / "log.csv")
    assert log["loss"][-1] < 0.5 * log["loss"][0]
    assert not (tmp_path / "run" / "loss.png").exists()


def test_missing_data_is_reported_at_once(tmp_path):
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "trainers.mnist", "--dataset=fashion_mnist"]
        + [f"--data_dir={tmp_path}", f"--model_dir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
    )
    assert time.perf_counter() - start < 5
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("--dataset=fashion_mnist: ")
    assert (
        f"tfds.builder('fashion_mnist', data_dir='{tmp_path}')"
        ".download_and_prepare()" in line
    )
    assert not (tmp_path / "run").exists()
