"""`tools.spectra` on a run of a trainer, and what it refuses."""

import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfkfac
from tfkfac import analysis
from tools.quadratic import model as quadratic
from trainers import checkpoints, cifar, command_line, run_directory
from trainers import train as trained
from trainers.data import on_disk

EXAMPLES = 150
RUN = ["--dataset=digits", "--model=small_cnn", "--batch_size=64"]
RUN += ["--evaluation_period=2", "--verbose=0", "--nodeterministic"]

# Prints what the tool exits with for each of several command lines, with a
# package missing for the last, and whether TensorFlow was imported.
REFUSALS = """
import importlib.util, json, sys
from absl import flags
from tools import spectra
find = importlib.util.find_spec
for argv in json.loads(sys.argv[1]):
    missing = argv.pop() if argv and argv[-1] == "matplotlib" else None
    importlib.util.find_spec = lambda x: None if x == missing else find(x)
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["spectra", *argv])
    try:
        spectra.main(["spectra"])
    except SystemExit as end:
        print(json.dumps(str(end)))
print(json.dumps("tensorflow" in sys.modules))
"""


def train(folder, *more):
    """Leaves a run of four updates behind."""
    argv = [*RUN, "--steps=4", f"--model_dir={folder}", *more]
    trained.main(command_line.parse(cifar.TRAINER, argv))
    return folder


def execute(*arguments):
    """Returns what a Python process prints."""
    run = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_spectra_of_a_run(tmp_path):
    """Numbers of the last checkpoint, of the factors and data by hand."""
    more = ["--kl_clip=inf", "--learning_rate=0.01", "--inverter=eigen"]
    folder = train(tmp_path / "run", *more)
    text = execute(
        "-m", "tools.spectra", "--trainer=cifar", f"--model_dir={folder}",
        "--directions=3", f"--examples={EXAMPLES}", "--batch_size=64",
        "--movement=3", "--json",
    )  # fmt: skip
    written = folder / "spectra"
    found = json.loads(text)
    assert found == json.loads((written / "spectra.json").read_text())
    for name in ("eigenvalues", "noise", "movement"):
        picture = (written / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) > 10_000

    keras.utils.clear_session(free_memory=False)
    model = keras.models.load_model(checkpoints.latest(folder))
    tfkfac.attach(model)
    spectrum = analysis.eigenvalues(model)
    values = analysis.merged(spectrum)
    saved = quadratic.load(str(written / "kronecker.npy"))
    np.testing.assert_array_equal(saved.curvature, values[values > 0])
    np.testing.assert_array_equal(saved.noise, saved.curvature)
    assert [c["update"] for c in found["checkpoints"]] == [2, 4]
    assert found["checkpoints"][-1]["largest"] == values[0]
    assert [x["layer"] for x in found["layers"]] == [*spectrum]

    images, labels = on_disk.read_digits("train")
    batch = images[:EXAMPLES] / np.float32(16), labels[:EXAMPLES]
    along = analysis.directions(model, 3)
    measured = analysis.measure(model, along, [batch])
    assert len(found["directions"]) == len(measured) > 3
    for row, m in zip(found["directions"], measured):
        assert row["layer"] == m.direction.layer
        assert row["curvature"] == pytest.approx(m.curvature, rel=1e-3)
        assert row["variance"] == pytest.approx(m.variance, rel=1e-3)
    rows = np.array([[m.curvature, m.variance] for m in measured])
    rows = rows[np.argsort(-rows[:, 0])][: np.count_nonzero(rows[:, 0])]
    noisy = quadratic.load(str(written / "measured.txt"))
    np.testing.assert_allclose(noisy.curvature, rows[:, 0], rtol=1e-3)
    np.testing.assert_allclose(noisy.noise, rows[:, 1], rtol=1e-3)

    lines = (written / "movement.jsonl").read_text().splitlines()
    moved = [json.loads(line) for line in lines]
    assert [m["update"] for m in moved] == [1, 2]
    factors = [name for name in moved[0] if name != "update"]
    assert len(factors) == 2 * len(spectrum)


def test_what_is_refused(tmp_path):
    """Each in a sentence, before TensorFlow is imported."""
    plain = train(tmp_path / "sgd", "--optimizer=sgd")
    bare = train(tmp_path / "bare", "--keep_checkpoints=0")
    other = shutil.copytree(bare, tmp_path / "other")
    (other / run_directory.CHECKPOINTS).mkdir(exist_ok=True)
    (other / run_directory.CHECKPOINTS / "00000001.keras").touch()
    saved = json.loads((other / run_directory.CONFIGURATION).read_text())
    saved["dataset"] = "cifar10"  # None of that trainer's.
    (other / run_directory.CONFIGURATION).write_text(json.dumps(saved))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / run_directory.CONFIGURATION).write_text("{")
    folders = [None, tmp_path / "none", broken, plain, bare]
    command_lines = [[f"--model_dir={x}"] if x else [] for x in folders]
    command_lines.append(["--trainer=mnist", f"--model_dir={other}"])
    command_lines.append([f"--model_dir={plain}", "matplotlib"])
    text = execute("-c", REFUSALS, json.dumps(command_lines))
    *found, imported = map(json.loads, text.splitlines())
    expected = [
        "--model_dir: give the directory of a run",
        "none: has no readable configuration.json; give the directory of a run",
        "broken: has no readable configuration.json",
        "sgd: was trained with --optimizer=sgd, which has no factors",
        "bare: has no checkpoint; train with --keep_checkpoints=1",
        "cannot be opened as a run of trainers.mnist: ",
        "tools.spectra needs matplotlib, which is not installed",
    ]
    assert not imported
    for message, part in zip(found, expected, strict=True):
        assert part in message and len(message.splitlines()) == 1
