"""A small classifier, its data, and an optimizer for it."""

import keras
import numpy as np

import tfkfac

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype("float32")
Y = RNG.integers(0, 3, 16)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def small(name=None, **dense):
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="tanh", name="hidden"),
            keras.layers.Dense(3, name="logits", **dense),
        ],
        name=name,
    )


def compiled(model=None, loss=LOSS, compile_settings=None, **settings):
    model = model or small()
    settings = {"learning_rate": 0.05, "damping": 0.1, **settings}
    optimizer = tfkfac.KFAC(model=model, **settings)
    model.compile(optimizer, loss, **(compile_settings or {}))
    return model, optimizer


def flat(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])
