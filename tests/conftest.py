"""Settings of all tests."""

import functools
import os
import pathlib
import re
import shutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# By default on some processors alone; without it there is no convolution with
# channels first on a CPU.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import pytest
from tensorflow.python import pywrap_tfe
from tensorflow.python.framework import config

# Programs that tests run import trainers and tools, which are not installed.
_ROOT = str(pathlib.Path(__file__).resolve().parent.parent)
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [_ROOT, os.environ.get("PYTHONPATH")])
)

# Keras' sessions and seeds would clear the kernels of all eager operations,
# and to make them anew takes half the time of a small test.
_CLEAR = pywrap_tfe.TFE_ContextClearCaches
pywrap_tfe.TFE_ContextClearCaches = lambda context: None


# Their tests take minutes, most of them several processes.
_LONG = ("distributed_test", "trainers_test", "fault_campaign_test")
# Of several processes; and of what the project is made of beside programs.
_DISTRIBUTED = ("distributed_test",)
_DOCS = ("docs_test", "example_programs_test")
_PROJECT = ("build_test", "layers_test", "packaging_test", "project_test")
_PROGRAMS = re.compile(r"^\s*(?:from|import) (?:trainers|tools)\b", re.M)
_REFERENCE = re.compile(r"^(?:from|import) (?:oracle|reference|hand)", re.M)


@functools.cache
def _stage(path: pathlib.Path) -> str:
    """Returns the stage of a test file, one of the markers of pyproject.toml.

    Tests of trainers and tools are those that import them; numerical ones,
    those that compare with K-FAC in float64 NumPy.
    """
    name = path.stem
    if name in _DISTRIBUTED:
        return "distributed"
    if name in _DOCS:
        return "docs"
    source = path.read_text()
    if name not in _PROJECT and _PROGRAMS.search(source):
        return "trainers"
    return "numerical" if _REFERENCE.search(source) else "unit"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks each test with its stage, and begins with what is long.

    So no worker is left alone with it: one worker gets all of it, as
    pytest-xdist deals out the first tests in order.
    """
    for item in items:
        item.add_marker(_stage(item.path))
    items.sort(key=lambda item: item.module.__name__ not in _LONG)


@pytest.fixture(autouse=True)
def _fresh_names():
    """Layers are named anew in each test, as some tests name them."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def _process_settings():
    """What a trainer sets for its process ends with the test that ran it.

    With deterministic operations Keras turns off `jit_compile`.
    """
    yield
    config.disable_op_determinism()
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def seeded_kernels(monkeypatch):
    """A seed reaches the operations of `tf.random`, whose kernels have it."""
    monkeypatch.setattr(pywrap_tfe, "TFE_ContextClearCaches", _CLEAR)


@pytest.fixture
def float64():
    """Runs a test with `floatx="float64"`."""
    keras.config.set_floatx("float64")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run of `trainers.mnist` of two epochs, with a checkpoint of each."""
    import mnist_runs

    path = tmp_path_factory.mktemp("finished") / "run"
    mnist_runs.train(
        "--optimizer=momentum", "--epochs=2", f"--model_dir={path}"
    )
    return path


@pytest.fixture
def run_dir(finished, tmp_path):
    """A copy of it, and what is in it."""
    path = shutil.copytree(finished, tmp_path / "run")
    return path, {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
