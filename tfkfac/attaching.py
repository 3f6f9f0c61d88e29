"""Joins models with the optimizers that they came with."""

import keras

from tfkfac import model_methods
from tfkfac.distributed.loss_scale import unwrapped
from tfkfac.optimizer import KFAC


def attach(model: keras.Model) -> None:
    """Joins a compiled model and its `KFAC` optimizer.

    What `KFAC(model=model)` does, for a model that came with its optimizer,
    such as from `keras.models.load_model`. Saved curvature state goes to its
    layers here. A training function that Keras has made before is made anew.

    Raises:
        ValueError: The model is not compiled, the optimizer belongs to another
            model, or the saved curvature does not fit.
        TypeError: The optimizer is no `KFAC`.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"attach: {model!r} is not a keras.Model.")
    optimizer = unwrapped(getattr(model, "optimizer", None))
    if optimizer is None:
        raise ValueError(
            f"{model.name!r} is not compiled: call model.compile(optimizer="
            "tfkfac.KFAC(...), ...) before tfkfac.attach(model)."
        )
    if not isinstance(optimizer, KFAC):
        raise TypeError(
            f"The optimizer of {model.name!r} is {type(optimizer).__name__}, "
            "not KFAC."
        )
    optimizer._attach(model)
    model_methods.trace_anew(model)
