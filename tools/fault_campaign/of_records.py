"""Records that are damaged: trials of a study, data sets on disk."""

import functools
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from tools.fault_campaign import faults, processes, trained

_STUDY = Path(__file__).resolve().parents[2] / "docs" / "batch_size"


def _study(folder, line, argv=("--report_only",), described=True):
    """The first line of a study's trials is another, or study.json is lost."""
    study = folder / "study"
    study.mkdir()
    if described:
        shutil.copy(_STUDY / "study.json", study)
    lines = (_STUDY / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (study / "trials.jsonl").write_bytes(line(lines[0]) + lines[1])
    program = functools.partial(
        processes.program,
        "tools.batch_size_study",
        "--study_dir=study",
        *argv,
    )
    processes.demand(processes.run(program, folder / "study.txt"))


def _line(**changes):
    def change(line):
        record = {**json.loads(line), **changes}
        kept = {k: v for k, v in record.items() if v != "gone"}
        return json.dumps(kept).encode() + b"\n"

    return change


for _name, _change in {
    "3": lambda line: b"3\n",
    "half of one": lambda line: line[:40] + b"\n",
    "binary": lambda line: b"\xff\x00\n",
    "without a curve": _line(curve="gone"),
    "with steps of text": _line(steps="x"),
    "with arm 3": _line(arm=3),
    "of an unknown arm": _line(arm="newton"),
    "with status 'ended'": _line(status="ended"),
    "with a batch size of -8": _line(batch_size=-8),
    "with settings of NaN": _line(settings={"learning_rate": float("nan")}),
}.items():
    faults.add(
        "files",
        f"trials.jsonl with a line that is {_name}",
        functools.partial(_study, line=_change),
        refused=r"trials.jsonl.*line 1\b",
        long=_name != "3",
    )
faults.add(
    "files",
    "trials.jsonl without a study.json",
    functools.partial(
        _study,
        line=lambda line: line,
        argv=(
            "--batch_sizes=64",
            "--target_value=0.1",
            "--",
            "--dataset=digits",
        ),
        described=False,
    ),
    refused="no study.json.*put that back, or give another",
    long=True,
)
faults.add(
    "files",
    "an arm with an open quote",
    lambda folder: _study(
        folder,
        lambda line: line,
        ("--batch_sizes=64", "--target_value=0.1", "--arm=x: kfac 'a"),
    ),
    refused="--arm=x.*quot",
    long=True,
)


def _data(folder, spoil, labels=range(10)):
    """Trains on a small data set in files that are spoilt."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    import small_data

    data = folder / "data"

    def write():
        rng = np.random.default_rng(0)
        x, y = small_data.images(rng, 48, (28, 28, 1))
        small_data.store(
            data,
            "mnist",
            {
                "train": {"image": x, "label": y},
                "test": {"image": x[:16], "label": y[:16]},
            },
        )

    processes.demand(processes.run(write, folder / "write.txt"))
    spoil(data)
    argv = (
        "--dataset=mnist",
        f"--data_dir={data}",
        "--batch_size=8",
        "--steps=3",
        "--optimizer=sgd",
        "--verbose=0",
        f"--model_dir={folder / 'run'}",
    )
    program = functools.partial(processes.program, "trainers.mnist", *argv)
    processes.demand(processes.run(program, folder / "train.txt"))


def _record_file(data: Path) -> Path:
    (path,) = data.glob("mnist/*/mnist-train.tfrecord*")
    return path


def _relabel(data: Path) -> None:
    """Gives one example the label 77, in a record with a sound checksum."""
    import tensorflow as tf

    path = _record_file(data)
    records = [r.numpy() for r in tf.data.TFRecordDataset(str(path))]
    example = tf.train.Example.FromString(records[0])
    example.features.feature["label"].int64_list.value[0] = 77
    records[0] = example.SerializeToString()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


for _name, _spoil, _said in (
    (
        "a label of 77",
        lambda d: processes.demand(
            processes.run(lambda: _relabel(d), d.parent / "relabel.txt")
        ),
        "tfrecord.*: labels are from 0 to 9, and one is 77; remove",
    ),
    (
        "a flipped bit",
        lambda d: trained.flip(_record_file(d), 5000),
        "tfrecord.*(corrupted|record).*remove",
    ),
    (
        "half of it",
        lambda d: os.truncate(_record_file(d), 7000),
        "tfrecord.*(truncated|record).*remove",
    ),
    ("no file", lambda d: _record_file(d).unlink(), "is missing; remove"),
    (
        "a description cut",
        lambda d: os.truncate(_record_file(d).parent / "dataset_info.json", 40),
        "description of the data .* cannot be read.*remove it",
    ),
):
    faults.add(
        "files",
        f"records with {_name}",
        functools.partial(_data, spoil=_spoil),
        refused=_said,
        long=True,
    )
