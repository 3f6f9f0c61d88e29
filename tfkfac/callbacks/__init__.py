"""Callbacks for `fit`; on one process those for several do nothing."""

from tfkfac.callbacks.checkpoints import BackupAndRestore, ModelCheckpoint
from tfkfac.callbacks.distributed import Distributed
from tfkfac.callbacks.health import Health
from tfkfac.callbacks.monitoring import FactorMovement, StopOnSkippedSteps
from tfkfac.callbacks.warmup import LearningRateWarmup

__all__ = [
    "BackupAndRestore",
    "Distributed",
    "FactorMovement",
    "Health",
    "LearningRateWarmup",
    "ModelCheckpoint",
    "StopOnSkippedSteps",
]
