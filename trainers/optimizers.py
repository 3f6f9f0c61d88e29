"""Optimizers by the name that --optimizer gives them."""

import keras

import tfkfac


def make(
    name: str, model: keras.Model, seed: int, settings: dict
) -> keras.optimizers.Optimizer:
    """Returns the optimizer for `model`; `settings` are its arguments.

    On several ranks it averages the gradients over them.
    """
    if name == "kfac":
        return tfkfac.KFAC(**settings, seed=seed, model=model)
    makers = {
        "momentum": keras.optimizers.SGD,
        "sgd": keras.optimizers.SGD,
        "adam": keras.optimizers.Adam,
    }
    return tfkfac.distribute(makers[name](**settings))
