"""Versions of Keras and TensorFlow that are too old, or not yet tested."""

import re
import subprocess
import sys
import warnings

import keras
import pytest
import tensorflow as tf

from tfkfac import versions


def test_the_installed_versions_are_supported():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versions.check(Keras=keras.__version__, TensorFlow=tf.__version__)


@pytest.mark.parametrize("version", ["3.10.0", "3.9.2", "2.15.0"])
def test_an_old_version_is_refused_with_the_mend(version):
    with pytest.raises(ImportError) as raised:
        versions.check(TensorFlow="2.20.0", Keras=version)
    assert str(raised.value) == (
        "tfkfac needs Keras 3.12 or later, and Keras "
        f"{version} is installed: pip install 'keras>=3.12,<3.16'."
    )


@pytest.mark.parametrize("version", ["2.22.0-rc1", "2.100.0", "3.0.0"])
def test_a_version_that_is_not_tested_is_warned_of(version):
    expected = f"not tested with TensorFlow {re.escape(version)}: .*tensorflow>"
    with pytest.warns(UserWarning, match=expected):
        versions.check(TensorFlow=version)


def test_a_missing_tensorflow_is_said_at_once():
    """Before Keras is imported, whose own error is another."""
    program = (
        "import importlib.util as u; found = u.find_spec; "
        "u.find_spec = lambda n: None if n == 'tensorflow' else found(n); "
        "import tfkfac"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert run.returncode != 0
    assert run.stderr.strip().splitlines()[-1] == (
        "ImportError: tfkfac needs TensorFlow, and it is not installed: pip "
        "install 'tfkfac[cpu]' or 'tfkfac[gpu]'."
    )
