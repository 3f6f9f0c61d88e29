"""A classifier whose batches or factors are spoilt, and what stays finite."""

import keras
import numpy as np

import tfkfac

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6)).astype("float32")
Y = RNG.integers(0, 3, 16)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make(build=None, **settings):
    model = build() if build else dense_model()
    settings = {"damping": 0.1, "inverse_update_period": 1, **settings}
    optimizer = tfkfac.KFAC(0.05, model=model, **settings)
    model.compile(optimizer, LOSS)
    return model, optimizer


def dense_model():
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, activation="relu", name="hidden"),
            keras.layers.LayerNormalization(name="norm"),
            keras.layers.Dense(3, name="logits"),
        ]
    )


def all_finite(model, optimizer):
    values = [v.numpy() for v in model.variables + optimizer.variables]
    values += optimizer.curvature.state().values()
    return all(np.isfinite(v).all() for v in values)
