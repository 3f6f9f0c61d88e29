"""Packages that are not installed, and backends that are others.

Each program is a new interpreter: what is hidden must not be imported yet.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

from tools.fault_campaign import faults, processes, trained

_ROOT = Path(__file__).resolve().parents[2]
_HIDE = """
import importlib.machinery, runpy, sys
class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden)
import importlib.util
found = importlib.util.find_spec
def find_spec(name, package=None):
    hidden = name.partition(".")[0] == {package!r}
    return None if hidden else found(name, package)
importlib.util.find_spec = find_spec
"""
_FIT = """
import keras, numpy as np, tfkfac
tfkfac.init()
model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
model.compile(tfkfac.KFAC(0.1, model=model), "mse")
model.fit(np.ones((8, 6)), np.zeros((8, 3)), verbose=0)
"""


def _interpret(folder, package, program, **environment):
    """Runs a program in a new interpreter in which a package is hidden."""
    done = subprocess.run(
        [sys.executable, "-c", _HIDE.format(package=package) + program],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(_ROOT), **environment},
    )
    output = folder / "program.txt"
    output.write_text(done.stdout + done.stderr)
    if done.returncode:
        *_, last = processes.tail(output, 3000).strip().splitlines()
        raise faults.RefusedError(last)


def _trainer(name, *argv):
    given = [a for a in trained.ARGV if not a.startswith("--dataset")]
    given += ["--model_dir=run", *argv]
    return (
        f"sys.argv = ['trainers', *{given!r}]\n"
        f"runpy.run_module('trainers.{name}', run_name='__main__')\n"
    )


faults.add(
    "packages",
    "one process without horovod",
    functools.partial(_interpret, package="horovod", program=_FIT),
    long=True,
)
faults.add(
    "packages",
    "two processes without horovod",
    functools.partial(
        _interpret,
        package="horovod",
        program=_FIT,
        HOROVOD_SIZE="2",
        HOROVOD_RANK="0",
    ),
    refused="ImportError.*Horovod.*build_horovod builds it",
    long=True,
)
for _package, _argv, _extra in (
    ("tensorflow_datasets", ("mnist", "--dataset=mnist"), "data"),
    ("sklearn", ("mnist", "--dataset=digits"), "data"),
    ("matplotlib", ("mnist", "--dataset=digits", "--compare=adam"), "plot"),
    (
        "tensorboard",
        ("mnist", "--dataset=digits", "--tensorboard"),
        "tensorboard",
    ),
    ("sentencepiece", ("lm1b", "--dataset=pydocs", "--vocabulary=300"), "text"),
):
    faults.add(
        "packages",
        f"a trainer without {_package}",
        functools.partial(
            _interpret, package=_package, program=_trainer(*_argv)
        ),
        refused=rf"needs {_package}.*pip install 'tfkfac\[{_extra}\]'",
        long=_package != "sklearn",
    )
faults.add(
    "packages",
    "another backend of Keras",
    functools.partial(
        _interpret,
        package="jax",
        program="import keras; keras.backend.backend = lambda: 'jax'\n"
        "import tfkfac",
    ),
    refused="ImportError: tfkfac needs Keras' TensorFlow.*KERAS_BACKEND",
    long=True,
)
