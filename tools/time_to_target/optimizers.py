"""An optimizer of its name and arguments."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

import tfkfac


def _kfac(
    model: keras.Model,
    only: Sequence[str] | None = None,
    growing: float | None = None,
    late: float | None = None,
    **arguments,
) -> tfkfac.KFAC:
    """Returns K-FAC.

    Args:
        model: The model.
        only: Names of the layers that have curvature; the others take the plain
            gradient. None for all layers.
        growing: The updates of an epoch, where both periods grow by it as
            Osawa et al. 2019, equation 20, has them.
        late: The same for equation 21.
        **arguments: Of `KFAC`.
    """
    if only is not None:
        others = [x.name for x in model.layers if x.name not in only]
        arguments |= {"skip": others, "fallback": "gradient"}
    for epoch, kind in (
        (growing, tfkfac.GrowingInterval),
        (late, tfkfac.LateInterval),
    ):
        if epoch is None:
            continue
        period = kind(epoch)
        arguments["factor_update_period"] = period
        arguments["inverse_update_period"] = period
    return tfkfac.KFAC(**arguments, model=model)


PEERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "momentum": keras.optimizers.SGD,
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "muon": keras.optimizers.Muon,
}


def make(
    name: str, arguments: dict[str, Any], steps: int, model: keras.Model
) -> keras.optimizers.Optimizer:
    """Returns an optimizer.

    Args:
        name: "kfac", or of `PEERS`.
        arguments: Its arguments. Of peers also "schedule": "cosine" has the
            rate fall to 0 over the steps by a cosine, "constant" leaves it.
        steps: Of the schedule.
        model: What it is for.
    """
    if name == "kfac":
        return _kfac(model, **arguments)
    arguments = dict(arguments)
    if arguments.pop("schedule", "constant") == "cosine":
        arguments["learning_rate"] = keras.optimizers.schedules.CosineDecay(
            arguments["learning_rate"], steps
        )
    return PEERS[name](**arguments)
