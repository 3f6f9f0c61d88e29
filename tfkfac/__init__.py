"""K-FAC for Keras 3 on TensorFlow.

optimizer = tfkfac.KFAC(learning_rate=0.1, damping=1e-3, model=model)
model.compile(optimizer=optimizer, loss=...)
model.fit(...)
"""

import importlib.util as _importlib

if _importlib.find_spec("tensorflow") is None:
    raise ImportError(
        "tfkfac needs TensorFlow, and it is not installed: pip install "
        "'tfkfac[cpu]' or 'tfkfac[gpu]'."
    )

import keras as _keras
import tensorflow as _tensorflow

from tfkfac import versions as _versions

_versions.check(Keras=_keras.__version__, TensorFlow=_tensorflow.__version__)

if _keras.backend.backend() != "tensorflow":
    raise ImportError(
        "tfkfac needs Keras' TensorFlow backend, and the active backend is "
        f"{_keras.backend.backend()!r}: set KERAS_BACKEND=tensorflow before "
        "Keras is imported."
    )

from tfkfac import callbacks
from tfkfac.attaching import attach
from tfkfac.blocks import CurvatureBlock, KroneckerBlock, ScaleShiftBlock
from tfkfac.capture.distributions import (
    Bernoulli,
    Categorical,
    Gaussian,
    Huber,
    HyperbolicSecant,
    Laplace,
    Likelihood,
    LogGaussian,
)
from tfkfac.distribute import distribute
from tfkfac.distributed.communicator import init
from tfkfac.inverters import CholeskyInverter, EigenInverter, Inverter
from tfkfac.optimizer import KFAC
from tfkfac.planning import plan
from tfkfac.registry import register, register_linear, register_scale
from tfkfac.schedules import GrowingInterval, LateInterval
from tfkfac.verification import verify

__version__ = "0.1.0"

__all__ = [
    "Bernoulli",
    "Categorical",
    "CholeskyInverter",
    "CurvatureBlock",
    "EigenInverter",
    "Gaussian",
    "GrowingInterval",
    "Huber",
    "HyperbolicSecant",
    "Inverter",
    "KFAC",
    "KroneckerBlock",
    "Laplace",
    "LateInterval",
    "Likelihood",
    "LogGaussian",
    "ScaleShiftBlock",
    "attach",
    "callbacks",
    "distribute",
    "init",
    "plan",
    "register",
    "register_linear",
    "register_scale",
    "verify",
]
