"""The wheel: what it holds, and that it needs nothing but what it declares."""

import email
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest

import tfkfac

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Run where nothing can be imported but what tfkfac and TensorFlow require.
PROGRAM = """
import importlib.metadata, sys

hidden = set({hidden!r})

class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden)
sys.path.insert(0, {folder!r})

import keras, tensorflow, time

before = time.process_time()
import tfkfac

seconds = time.process_time() - before
assert tfkfac.__file__.startswith({folder!r}), tfkfac.__file__
import numpy as np

model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
model.compile(tfkfac.KFAC(model=model), "mse")
losses = model.fit(np.eye(6), np.ones((6, 3)), epochs=5, verbose=0).history
assert losses["loss"][-1] < losses["loss"][0]
for name in ("trainers", "tools", "tests"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(name + " is in the wheel")
print("seconds", seconds)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of the wheel, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for package in ("tfkfac", "trainers", "tools", "tests"):
        shutil.copytree(
            ROOT / package,
            folder / package,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    program = "from setuptools import build_meta as b; b.build_wheel('dist')"
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    (path,) = (folder / "dist").glob("*.whl")
    return path


def _required(names):
    """The distributions that some require, and those that these require."""
    found, waiting = set(), list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        waiting += [
            re.match(r"[\w.-]+", requirement)[0]
            for requirement in requires
            if "extra ==" not in requirement
        ]
    return found


def test_the_wheel_holds_tfkfac_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tfkfac").rglob("*.py")
    }
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == modules | {"tfkfac/py.typed"}


def test_the_metadata_of_the_wheel(wheel):
    (name,) = (
        n
        for n in zipfile.ZipFile(wheel).namelist()
        if n.endswith(".dist-info/METADATA")
    )
    data = email.message_from_bytes(zipfile.ZipFile(wheel).read(name))
    assert data["Name"] == "tfkfac"
    assert data["Version"] == tfkfac.__version__
    assert data["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in data.get_all("Classifier")
    assert data.get_all("Project-URL")
    needed = [r for r in data.get_all("Requires-Dist") if "extra" not in r]
    assert [re.match(r"[\w-]+", r)[0] for r in needed] == [
        "absl-py",
        "keras",
        "numpy",
    ]


def test_the_wheel_trains_beside_tensorflow_alone(wheel, tmp_path):
    """Importing it adds 0.3 s of processor time at most to Keras'."""
    folder = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(folder)
    allowed = _required(
        ["tensorflow", "tensorflow-cpu", "keras", "absl-py", "numpy"]
    )
    hidden = sorted(
        module
        for module, owners in metadata.packages_distributions().items()
        if not {re.sub(r"[-_.]+", "-", o).lower() for o in owners} & allowed
        and module != "tfkfac"
        and not module.startswith("_")
    )
    assert {"horovod", "sklearn", "matplotlib"} <= set(hidden)
    program = PROGRAM.format(hidden=hidden, folder=str(folder))
    seconds = []
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-P", "-c", program],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"TF_CPP_MIN_LOG_LEVEL": "3", "PATH": "/usr/bin:/bin"},
        )
        assert run.returncode == 0, run.stderr[-2000:]
        seconds.append(float(run.stdout.split("seconds")[-1]))
    assert min(seconds) < 0.3, seconds
