"""Settings of all tests."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest
from tensorflow.python import pywrap_tfe
from tensorflow.python.framework import config

# Keras' sessions and seeds would clear the kernels of all eager operations,
# and to make them anew takes half the time of a small test.
pywrap_tfe.TFE_ContextClearCaches = lambda context: None


# Their tests take minutes, most of them several processes.
_LONG = ("distributed_test", "trainers_test", "fault_campaign_test")


def pytest_collection_modifyitems(items):
    """Begins with what is long, so that no worker is left alone with it.

    One worker gets all of it, as pytest-xdist deals out the first tests in
    order.
    """
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
def float64():
    """Runs a test with `floatx="float64"`."""
    keras.config.set_floatx("float64")
