"""The runs of each program: data, model, optimizer and its settings.

Each file has a `TRAINER`, with the run that is made without a flag, those of
data sets that have one of their own, and those of papers, which --preset names.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.command_line import Trainer

NAMES = ("imagenet", "cifar", "mnist", "lm1b")


def trainer(name: str) -> "Trainer":
    """Returns what the program trainers.<name> runs."""
    return importlib.import_module(f"trainers.configs.{name}").TRAINER


def trainers_of_presets() -> dict[str, "Trainer"]:
    """Returns the program that has each preset."""
    return {
        preset: known
        for known in map(trainer, NAMES)
        for preset in known.presets
    }
