"""The optimizers, and the settings that each is tuned over.

`kfac` is `KFAC(model=model)`, without any other argument. Each of the others
has 16 settings; "decay" has the rate fall to 0 over the steps of the task by a
cosine, "constant" leaves it.
"""

import itertools
from collections.abc import Callable
from typing import Any

import keras

import tfkfac


def _grid(**values) -> list[dict]:
    """Returns all combinations."""
    products = itertools.product(*values.values())
    return [dict(zip(values, product)) for product in products]


_SCHEDULES = ["constant", "cosine"]
SETTINGS: dict[str, list[dict]] = {
    "kfac": [{}],
    "kfac_tuned": _grid(
        learning_rate=[0.1, 0.3],
        damping=[1e-3, 1e-2],
        kl_clip=[1e-3, 1e-2],
        inverse_update_period=[10, 50],
    ),
    "momentum": _grid(
        learning_rate=[0.01, 0.03, 0.1, 0.3],
        momentum=[0.9, 0.97],
        schedule=_SCHEDULES,
    ),
    "adam": _grid(
        learning_rate=[3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 3e-2],
        schedule=_SCHEDULES,
    ),
    "adamw": _grid(
        learning_rate=[1e-3, 3e-3, 1e-2, 3e-2],
        weight_decay=[1e-4, 1e-2],
        schedule=_SCHEDULES,
    ),
    "muon": _grid(
        learning_rate=[1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 3e-2, 5e-2],
        schedule=_SCHEDULES,
    ),
}
_MAKERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "momentum": keras.optimizers.SGD,
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "muon": keras.optimizers.Muon,
}
PEERS = tuple(_MAKERS)


def make(
    name: str, settings: dict[str, Any], steps: int, model: keras.Model
) -> keras.optimizers.Optimizer:
    """Returns an optimizer.

    Args:
        name: Of `SETTINGS`.
        settings: Its arguments, "schedule" among them.
        steps: Of the schedule.
        model: What it is for.
    """
    if name.startswith("kfac"):
        return tfkfac.KFAC(**settings, model=model)
    settings = dict(settings)
    if settings.pop("schedule", "constant") == "cosine":
        settings["learning_rate"] = keras.optimizers.schedules.CosineDecay(
            settings["learning_rate"], steps
        )
    return _MAKERS[name](**settings)
