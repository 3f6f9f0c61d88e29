"""Data sets that are not on disk, or not whole."""

import re
import subprocess
import sys
import time
import types

import keras
import numpy as np
import pytest
import small_data
import tensorflow as tf

from trainers import command_line, imagenet, train
from trainers.data import images, on_disk


def load(name, data_dir):
    return images.load(name, str(data_dir))


def test_missing_data_is_told_at_once(tmp_path):
    """Before TensorFlow is imported; images need no module of text."""
    names = ["cifar10", "svhn_cropped", "mnist", "imagenet2012", "lm1b", "x"]
    program = f"""
import sys
from trainers.data import images
def tell(load, name):
    try:
        load(name, {str(tmp_path)!r})
    except SystemExit as error:
        print(error)
for name in {names[:-2]}:
    tell(images.load, name)
assert not {{"trainers.data.text", "trainers.data.tokens"}} & {{*sys.modules}}
from trainers.data import tokens
tell(tokens.load, "lm1b")
tell(images.load, "x")
assert "tensorflow" not in sys.modules
"""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert time.perf_counter() - start < 5
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(names)
    for name, line in zip(names[:-1], lines):
        assert line.startswith(f"--dataset={name}: {tmp_path}/{name}/")
        assert (
            'python -c "import tensorflow_datasets as tfds; tfds.builder('
            f"'{name}', data_dir='{tmp_path}').download_and_prepare()\"" in line
        )
    assert "put ILSVRC2012_img_train.tar and" in lines[3]
    assert f"{tmp_path}/downloads/manual" in lines[3]
    assert lines[-1].startswith("--dataset=x: choose from digits, mnist")


@pytest.fixture
def mnist(tmp_path):
    """The directory of a data set to spoil."""
    small_data.write(tmp_path, "mnist")
    return tmp_path


def spoil_record(path):
    """Changes a byte in the middle of a file of records."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_file_is_missing(mnist):
    next(mnist.glob("mnist/*/mnist-test.tfrecord*")).unlink()
    with pytest.raises(
        SystemExit, match="mnist: .*mnist-test.tfrecord.* is missing; remove"
    ):
        load("mnist", mnist)


def test_description_is_corrupt(mnist):
    next(mnist.glob("mnist/*/dataset_info.json")).write_text("{")
    with pytest.raises(SystemExit, match="--dataset=mnist: .*cannot be read"):
        load("mnist", mnist)


@pytest.mark.parametrize("spoil", ["a byte", "the end", "whole records"])
def test_corrupt_record(mnist, spoil):
    (path,) = mnist.glob("mnist/*/mnist-train.tfrecord*")
    if spoil == "a byte":
        spoil_record(path)
    else:
        first = 16 + int.from_bytes(path.read_bytes()[:8], "little")
        end = first if spoil == "whole records" else -1
        path.write_bytes(path.read_bytes()[:end])
    found = load("mnist", mnist)
    expected = (
        "expected to contain 48 elements but contained only 1"
        if spoil == "whole records"
        else "mnist-train.tfrecord-00000-of-00001: .*record"
    )
    with pytest.raises(SystemExit, match=f"--dataset=mnist: .*{expected}"):
        found.train(8, 0)
    assert len(list(found.evaluation("test", 8))) == 2


def write_records(path, change):
    """Writes a file of records again, after `change` of the third one."""
    records = [r.numpy() for r in tf.data.TFRecordDataset(str(path))]
    example = tf.train.Example.FromString(records[2])
    change(example.features.feature)
    records[2] = example.SerializeToString()
    with tf.io.TFRecordWriter(str(path)) as file:
        for record in records:
            file.write(record)


def label(value):
    """Returns a change of the label; no builder of TFDS would write it."""

    def change(features):
        features["label"].int64_list.value[0] = value

    return change


def image(value):
    def change(features):
        features["image"].bytes_list.value[0] = value

    return change


@pytest.mark.parametrize(
    "change, reason",
    [
        (label(77), "labels are from 0 to 9, and one is 77; remove"),
        (label(10), "labels are from 0 to 9, and one is 10; remove"),
        (label(-1), "labels are from 0 to 9, and one is -1; remove"),
        (image(b"no image"), "Unknown image file format.*; remove"),
    ],
)
def test_records_with_wrong_contents(mnist, change, reason):
    (path,) = mnist.glob("mnist/*/mnist-train.tfrecord*")
    write_records(path, change)
    with pytest.raises(SystemExit, match=f"mnist: {path}: {reason}"):
        load("mnist", mnist).train(8, 0)


def test_labels_are_told_with_their_file():
    files = types.SimpleNamespace(
        shard_lengths=[3, 2, 4], filepaths=["a", "b", "c"]
    )
    builder = types.SimpleNamespace(
        name="mnist",
        info=types.SimpleNamespace(splits={"train": files}),
        data_path="data",
    )
    for index, file in enumerate("aaabbcccc"):
        labels = np.arange(9)
        labels[index] = 10
        with pytest.raises(SystemExit, match=f"mnist: {file}: labels .* 10;"):
            on_disk.check_labels(builder, "train", labels, 10)
    on_disk.check_labels(builder, "train", np.arange(9), 9)


def test_empty_split(tmp_path):
    rng = np.random.default_rng(0)
    x, y = small_data.images(rng, 4, (28, 28, 1))
    small_data.store(tmp_path, "mnist", {"train": {"image": x, "label": y}})
    with pytest.raises(SystemExit, match="mnist: .*split 'test' is empty"):
        load("mnist", tmp_path)
    with pytest.raises(SystemExit, match="validation: 4 .* are too few"):
        on_disk.split_ranges({"train": 4}, 10, True)


def test_corrupt_record_ends_a_run(tmp_path, monkeypatch):
    """In training, and in the evaluation after it."""
    small_data.write(tmp_path, "imagenet2012")
    # Computes the mean image.
    load("imagenet2012", tmp_path).evaluation("validation", 2)
    small = keras.Sequential(
        [
            keras.Input((224, 224, 3)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1000),
        ]
    )
    monkeypatch.setattr(train, "make_model", lambda run: small)
    argv = ["--optimizer=sgd", "--batch_size=48", "--steps=1", "--verbose=0"]
    argv += ["--overwrite", f"--data_dir={tmp_path}"]
    argv += [f"--model_dir={tmp_path}/run"]
    spoiled = [
        ("train", spoil_record, "corrupted"),
        (
            "train",
            changed(label(1077)),
            "labels are from 0 to 999, .* 1077",
        ),
        ("train", changed(image(b"no image")), "Unknown image file format"),
        ("validation", changed(label(-1)), "labels are from 0 to 999, .* -1"),
    ]
    for split, spoil, reason in spoiled:
        path = sorted(tmp_path.glob(f"imagenet2012/*/*-{split}.tfrecord*"))[1]
        before = path.read_bytes()
        spoil(path)
        run = command_line.parse(imagenet.TRAINER, argv)
        message = f"--dataset=imagenet2012: {re.escape(str(path))}: {reason}"
        with pytest.raises(SystemExit, match=message):
            train.main(run)
        path.write_bytes(before)


def changed(change):
    return lambda path: write_records(path, change)
