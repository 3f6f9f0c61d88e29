"""Whether all ranks have built the same model, loss and optimizer."""

import hashlib
import re
from collections.abc import Mapping

import keras

from tfkfac import keras_compat
from tfkfac.distributed.communicator import Communicator
from tfkfac.distributed.loss_scale import unwrapped
from tfkfac.schedules import is_number


def require_same(
    model: keras.Model, optimizer, communicator: Communicator
) -> None:
    """Compares what must be equal, so that ranks do not wait for ever.

    Args:
        model: A built model.
        optimizer: A built `keras.optimizers.Optimizer`.
        communicator: Over the ranks.

    Raises:
        RuntimeError: The ranks have different models, losses or settings; the
            message names the first.
    """
    variables = model.variables + optimizer.variables
    own = {
        # Not the paths: those of a restored model are others.
        f"{i}. variable": (
            f"{'/'.join(v.path.split('/')[-2:])}, {v.dtype} {tuple(v.shape)}"
        )
        for i, v in enumerate(variables[: len(model.variables)])
    }
    own["number of variables"] = str(len(variables))
    own |= _settings("optimizer", unwrapped(optimizer))
    for i, layer in enumerate(keras_compat.layers_of(model)):
        if not isinstance(layer, keras.Model):  # Its layers come too.
            own |= _settings(f"{i}. layer", layer)
    own |= _loss_settings(model)
    digest = hashlib.sha256(repr(sorted(own.items())).encode()).hexdigest()
    if len(set(communicator.gather_objects(digest, "comparing models"))) == 1:
        return
    found = communicator.gather_objects(own)
    for rank, other in enumerate(found):
        for key in {**found[0], **other}:
            if other.get(key) != found[0].get(key):
                raise RuntimeError(
                    f"Rank {rank} differs from rank 0 in its {key}: "
                    f"{str(other.get(key))[:_SHOWN]} against "
                    f"{str(found[0].get(key))[:_SHOWN]}. All ranks must build "
                    "the same models and optimizers, in the same order."
                )


def _loss_settings(model) -> dict[str, str]:
    """Returns what `compile` was given of the loss, as text."""
    loss = getattr(model, "loss", None)
    if isinstance(loss, keras.losses.Loss):
        return _settings("loss", loss)
    try:
        return {"loss": _text(keras.saving.serialize_keras_object(loss))}
    except (NotImplementedError, TypeError, ValueError):
        return {}  # It cannot be saved either.


def _settings(of: str, thing) -> dict[str, str]:
    """Returns what is in the configuration of a Keras object, as text.

    Numbers that an optimizer keeps in variables are shared, not compared; nor
    are names, and the seeds of layers.
    """
    kind = {of: type(thing).__name__}
    try:
        config = thing.get_config()
    except (NotImplementedError, TypeError, ValueError):
        return kind  # It cannot be saved either.
    is_optimizer = isinstance(thing, keras.optimizers.Optimizer)
    shared = set(getattr(thing, "hyperparameters", ())) | {"learning_rate"}
    for key, value in config.items():
        if key in ("name", "model") or key == "seed" and not is_optimizer:
            continue
        if is_optimizer and key in shared and is_number(value):
            value = "a number"
        kind[f"{of}'s {key}"] = _text(value)
    return kind


_SHOWN = 200  # Characters of a setting in a message.
_OWN = ("name", "seed", "shared_object_id")  # Of objects within others.


def _text(value) -> str:
    """Returns a text that is the same in each process for equal values.

    Sets have no order there, objects have other addresses, and those within
    have names and seeds of their own. The code of a lambda is not compared.
    """
    if isinstance(value, (str, bytes)):
        return str(value)
    if isinstance(value, Mapping):
        if value.get("class_name") == "__lambda__":
            return "a lambda"
        if value.get("class_name") == "DTypePolicy":
            return str(value)
        items = [
            f"{_text(k)}: {_text(v)}" for k, v in value.items() if k not in _OWN
        ]
        return "{" + ", ".join(items) + "}"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(map(_text, value))) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_text, value)) + "]"
    return re.sub(r"\b0x[0-9a-fA-F]+\b", "...", str(value))
