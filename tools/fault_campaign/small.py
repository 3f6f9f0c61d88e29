"""A small classifier to do harm to, and what stays the same."""

from collections.abc import Callable, Iterable

import keras
import numpy as np

import tfkfac

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 6)).astype("float32")
Y = RNG.integers(0, 3, 24)
BATCH = 8
GRAPH = {"run_eagerly": False}


def loss() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network() -> keras.Model:
    """Returns the classifier, always with the same weights."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(4, "tanh", name="hidden"),
            keras.layers.Dense(3, name="logits"),
        ]
    )


def compiled(model=None, optimizer=None, compiles=None, **settings):
    """Returns a model compiled with K-FAC, or another optimizer.

    Args:
        model: None for `network`.
        optimizer: None for `KFAC(**settings)`.
        compiles: More arguments of `compile`; eager steps are the default,
            as to trace graphs would take most of a campaign's time.
        **settings: Of `KFAC`.
    """
    model = network() if model is None else model
    if optimizer is None:
        optimizer = tfkfac.KFAC(
            **{"learning_rate": 0.05, "damping": 0.1, **settings}, model=model
        )
    defaults = {"loss": loss(), "run_eagerly": True}
    model.compile(optimizer, **{**defaults, **(compiles or {})})
    return model


def fit(model, x=X, y=Y, epochs=1, **more):
    """Trains on batches of `BATCH` in their order; returns the model."""
    model.fit(
        x,
        y,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        **{"batch_size": BATCH, **more},
    )
    return model


def weights(model) -> np.ndarray:
    return np.concatenate([w.numpy().ravel() for w in model.weights])


def assert_same(model, other, rtol=0.0) -> None:
    """Raises AssertionError where the weights differ."""
    own = weights(other)
    np.testing.assert_allclose(
        weights(model), own, rtol=rtol, atol=rtol * np.abs(own).max()
    )


def assert_finite(model) -> None:
    """Of the weights, and of all state of the optimizer."""
    values = [v.numpy() for v in [*model.variables, *model.optimizer.variables]]
    assert all(np.isfinite(v).all() for v in values), "not finite"


def unchanged(model, call: Callable) -> None:
    """Calls, and raises AssertionError where an error has moved weights."""
    before = weights(model)
    try:
        call()
    finally:
        np.testing.assert_array_equal(weights(model), before)


def without(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the data less one batch."""
    kept = np.delete(np.arange(len(X)), np.arange(BATCH) + batch * BATCH)
    return X[kept], Y[kept]


def spoilt(value: float, places: Iterable[int] = (8,)) -> np.ndarray:
    """Returns the inputs with a value in some rows; 8 is in the 2nd batch."""
    x = X.copy()
    x[list(places), 0] = value
    return x
