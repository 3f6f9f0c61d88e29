"""Numbers of layers, against NumPy."""

import keras
import numpy as np
import pytest
from keras import layers

import tfkfac
from tfkfac.analysis import health

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 6)).astype("float32")
X[:, 4] = 0.0  # An input that is silent,
X[:, 5] = X[:, 0]  # and one that is another's.
Y = RNG.normal(size=(24, 2)).astype("float32")
DAMPING, RHO, BATCH = 0.01, 0.75, 8


def trained(steps=4, **settings):
    """Returns the numbers and the factors after some eager steps."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(3, activation="tanh", name="hidden"),
            layers.LayerNormalization(name="norm"),
            layers.Dense(2, use_bias=False, name="last"),
        ]
    )
    optimizer = tfkfac.KFAC(
        0.1,
        damping=DAMPING,
        factor_decay=RHO,
        model=model,
        **{
            "factor_update_period": 1,
            "inverse_update_period": 1,
            **settings,
        },
    )
    model.compile(optimizer, "mse", run_eagerly=True)
    attached = optimizer.require_attached()
    attached.is_watched = True
    factors = []
    for step in range(steps):
        start = step * BATCH % len(X)
        part = slice(start, start + BATCH)
        model.train_on_batch(X[part], Y[part])
        c = 1 - RHO ** len(range(0, step + 1))
        factors.append({k: m[0] / c for k, m in optimizer.moments().items()})
    readings = attached.layers.estimator.readings
    return health.of_layers(optimizer, readings), factors


def scaled_condition(matrix):
    inverse = np.linalg.inv(matrix)
    d = np.sqrt(np.diag(inverse))
    both = matrix * np.outer(d, d), inverse / np.outer(d, d)
    return np.prod([np.abs(x).sum(axis=0).max() for x in both])


def test_conditions_and_damping_of_two_factors():
    found, factors = trained()
    A, G = (factors[-1][f"hidden/{x}_factor"] for x in ("input", "output"))
    layer = found["hidden"]
    a, g = np.trace(A) / 7, np.trace(G) / 3
    pi = np.sqrt(a / g)
    assert layer["pi"] == pytest.approx(pi, rel=1e-4)
    assert layer["relative_damping"] == pytest.approx(DAMPING / (a * g), 1e-4)
    root = np.sqrt(DAMPING)
    for factor, matrix, shift in zip(
        layer["factors"].values(), (A, G), (pi * root, root / pi)
    ):
        assert factor["damping"] == pytest.approx(shift, rel=1e-4)
        damped = matrix + shift * np.eye(len(matrix))
        expected = scaled_condition(damped)
        # The matrix that is looked at lacks the damping.
        assert factor["condition"] == pytest.approx(expected, rel=0.5)
        assert factor["movement"] == pytest.approx(0, abs=1e-6)
    assert layer["age"] == 0 and layer["failed"] == 0
    assert 0 < layer["rounding"] < 1e-3


def test_ranks_and_silent_inputs():
    found, _ = trained()
    A = found["hidden"]["factors"]["input_factor"]
    assert (A["side"], A["rank"], A["silent"]) == (7, 5, 1)
    assert A["ones"] == 1
    for name, factor in found["last"]["factors"].items():
        assert factor["ones"] == 0, name  # It has no bias.
    (norm,) = found["norm"]["factors"].values()
    assert norm["diagonal"] and norm["rank"] == 6


def test_examples_are_those_of_the_average_in_effect():
    for steps in (1, 3):
        found, _ = trained(steps)
        w = RHO ** np.arange(steps)
        expected = BATCH * w.sum() ** 2 / (w**2).sum()
        for layer in found.values():
            assert layer["examples"] == pytest.approx(expected, rel=1e-4)


def test_movement_since_the_last_inversion():
    found, factors = trained(steps=4, inverse_update_period=10)
    for path, layer in found.items():
        assert layer["age"] == 3
        for name, factor in layer["factors"].items():
            new, old = (factors[i][f"{path}/{name}"] for i in (-1, 0))
            expected = np.linalg.norm(new - old) / np.linalg.norm(old)
            assert factor["movement"] == pytest.approx(expected, rel=1e-4)


def test_exact_damping_has_no_split():
    found, factors = trained(inverter="eigen")
    layer = found["hidden"]
    assert layer["pi"] is None
    for name, factor in layer["factors"].items():
        d = np.linalg.eigvalsh(factors[-1][f"hidden/{name}"])
        root = np.sqrt(DAMPING)
        expected = (d[-1] + root) / (max(d[0], 0) + root)
        assert factor["condition"] == pytest.approx(expected, rel=1e-3)
        assert factor["damping"] is None
