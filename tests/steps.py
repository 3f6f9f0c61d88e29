"""A small network, its training steps, and its factors computed by hand."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from programs import ByHand

import tfkfac

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 4)).astype("float32")
Y = RNG.normal(size=(32, 1)).astype("float32")

modes = pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
# The second one, with a likelihood, samples the same targets in two runs.
FISHERS = {
    "empirical": {"fisher": "empirical"},
    "sampled": {"fisher": "sampled", "likelihood": tfkfac.Gaussian()},
}
# Where each takes several traces, sampled targets are drawn eagerly alone.
fewer = pytest.mark.parametrize(
    "fisher, eager",
    [
        pytest.param(FISHERS["empirical"], False, id="empirical-graph"),
        pytest.param(FISHERS["empirical"], True, id="empirical-eager"),
        pytest.param(FISHERS["sampled"], True, id="sampled-eager"),
    ],
)
fishers = pytest.mark.parametrize("fisher", FISHERS.values(), ids=FISHERS)


def net(outputs: int = 1, **options) -> keras.Sequential:
    """Returns a model of two Dense layers, "h" and "o", always the same."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, "tanh", name="h"),
            layers.Dense(outputs, name="o"),
        ],
        **options,
    )


def kfac(model, rate=0.0, **settings) -> tfkfac.KFAC:
    """Returns an optimizer whose factors are those of the last update."""
    settings = {"damping": 1e-2, "factor_decay": 0.0, **settings}
    return tfkfac.KFAC(rate, model=model, **settings)


def run(step: Callable, eager: bool, times: int = 1):
    """Makes a training step a number of times; returns what the last gave."""
    step = step if eager else tf.function(step)
    return [step() for _ in range(times)][-1]


def factors(optimizer) -> dict[str, np.ndarray]:
    return {name: value[0] for name, value in optimizer.moments().items()}


def of_mean_square(model, x=X, y=Y, w=1.0) -> dict[str, np.ndarray]:
    """Returns the factors of the mean squared error, computed by hand."""
    hand = ByHand()
    with hand.tape:
        square = tf.reduce_mean(tf.square(hand.chain(model, x) - y), 1)
        loss = tf.reduce_mean(square * w)
    return hand.close(loss, len(x)).factors()


def mean_square(model, x=X, y=Y) -> tf.Tensor:
    return tf.reduce_mean(tf.square(model(x, training=True) - y))


def assert_equal(found, expected, rtol=1e-4) -> None:
    """Compares arrays by name; by the largest entry where it is small."""
    assert set(found) == set(expected) and expected
    for name, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(
            found[name], value, rtol=rtol, atol=rtol * scale, err_msg=name
        )


def weights(model) -> dict[str, np.ndarray]:
    return {v.path: v.numpy() for v in model.trainable_variables}
