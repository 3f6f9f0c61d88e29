"""From U to the weights, by hand in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from tfkfac import keras_compat
from tfkfac.fallback import PlainGradient
from tfkfac.weight_update import WeightUpdate

W, M = np.array([1.0, -2.0, 3.0]), np.array([0.5, 0.0, -1.0])
V, U = np.array([1.0, 2.0, -2.0]), np.array([2.0, 1.0, 0.5])
ETA, MU = 0.5, 0.25
NONE = PlainGradient()  # It claims no variable.
pytestmark = pytest.mark.usefixtures("float64")


def average_of(optimizer):
    ((_, average),) = keras_compat.moving_averages(optimizer)
    return average


def updated(update=0, u=U, v=V, variable=None, average=None, **settings):
    """Returns (optimizer, W) after an update; the momentum was M before."""
    settings = {"kl_clip": None, **settings}
    if variable is None:
        variable = keras.Variable(W, name="w")
    optimizer = tfkfac.KFAC(ETA, momentum=MU, **settings)
    optimizer.build([variable])
    optimizer.momenta[0].assign(M)
    if average is not None:
        average_of(optimizer).assign(average)
    step = WeightUpdate(
        optimizer, [variable], tf.constant(update, tf.int64), NONE
    )
    key = id(variable)
    clipped = step.clip({key: tf.constant(v)})
    # U is linear in V, which `clip` may have made shorter.
    scale = float(tf.norm(clipped[key]) / tf.norm(tf.constant(v)))
    u = {key: tf.constant(u * scale)}
    step.run(u, step.sums(u, clipped))
    return optimizer, variable.numpy()


def test_momentum_comes_after_preconditioning():
    optimizer, w = updated()
    m = MU * M - ETA * U
    np.testing.assert_allclose(w, W + m, rtol=1e-15)
    np.testing.assert_allclose(optimizer.momenta[0], m, rtol=1e-15)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_momenta_of_which_other_ranks_have_v_are_looked_at(bad):
    """They begin anew where they are not finite, and only there."""
    a, b = keras.Variable(W, name="a"), keras.Variable(W, name="b")
    optimizer = tfkfac.KFAC(ETA, momentum=MU, kl_clip=None)
    optimizer.build([a, b])
    step = WeightUpdate(optimizer, [a, b], tf.constant(0, tf.int64), NONE)
    own = {id(a): tf.constant(V)}
    assert np.isfinite(step.sums(own, own)[2])
    optimizer.momenta[1].assign([1.0, bad, 3.0])
    assert np.isnan(step.sums(own, own)[2])
    step.mend_momenta()
    np.testing.assert_array_equal(optimizer.momenta[1], [1, 0, 3])


def test_an_average_that_was_damaged_begins_anew():
    average = np.array([np.nan, 1.0, np.inf])
    optimizer, w = updated(1, average=average, use_ema=True, ema_momentum=0.5)
    expected = [w[0], (1 + w[1]) / 2, w[2]]
    np.testing.assert_allclose(average_of(optimizer), expected, rtol=1e-14)


@pytest.mark.parametrize("bound", [1e-3, 1e3])
def test_kl_clip(bound):
    """<U, V> is 3, so that eta^2 <U, V> is 0.75."""
    nu = min(1, np.sqrt(bound / 0.75))
    _, w = updated(kl_clip=bound)
    np.testing.assert_allclose(w, W + MU * M - ETA * nu * U, rtol=1e-14)


@pytest.mark.parametrize("u", [-U, 0 * U])
def test_no_clip_where_the_product_is_not_positive(u):
    _, w = updated(kl_clip=1e-3, u=u)
    np.testing.assert_allclose(w, W + MU * M - ETA * u, rtol=1e-14)


@pytest.mark.parametrize(
    "settings, factor",
    [
        ({"global_clipnorm": 1.5}, 0.5),  # |V| is 3.
        ({"global_clipnorm": 4.0}, 1.0),
        ({"clipnorm": 1.5}, 0.5),
        # The KL clip is of what the other clip leaves: 0.25 * 3 / 4.
        ({"global_clipnorm": 1.5, "kl_clip": 0.01}, 0.5 * (0.01 / 0.1875)**0.5),
    ],
)  # fmt: skip
def test_clips_of_the_gradient(settings, factor):
    _, w = updated(**settings)
    np.testing.assert_allclose(w, W + MU * M - ETA * factor * U, rtol=1e-14)


def test_weight_decay_is_apart_from_momentum():
    optimizer, w = updated(weight_decay=0.1)
    m = MU * M - ETA * U
    np.testing.assert_allclose(w, (1 - ETA * 0.1) * W + m, rtol=1e-14)
    np.testing.assert_allclose(optimizer.momenta[0], m, rtol=1e-14)


def test_constraints_come_last():
    variable = keras.Variable(W, name="w")
    variable.constraint = keras.constraints.NonNeg()
    _, w = updated(variable=variable)
    np.testing.assert_allclose(w, np.maximum(W + MU * M - ETA * U, 0))


def test_averages_of_weights():
    """The first is the weights themselves; they are written back when due."""
    after = W + MU * M - ETA * U
    options = {"use_ema": True, "ema_momentum": 0.75, "average": V}
    optimizer, w = updated(**options)
    np.testing.assert_allclose(average_of(optimizer), after, rtol=1e-14)
    np.testing.assert_allclose(w, after, rtol=1e-14)
    expected = 0.75 * V + 0.25 * after
    for frequency, weights in ((None, after), (3, after), (5, expected)):
        optimizer, w = updated(4, ema_overwrite_frequency=frequency, **options)
        np.testing.assert_allclose(average_of(optimizer), expected, rtol=1e-14)
        np.testing.assert_allclose(w, weights, rtol=1e-14)


def test_sums_are_float64_over_types():
    optimizer = tfkfac.KFAC(ETA, global_clipnorm=1.0)
    update = WeightUpdate(optimizer, [], tf.constant(0, tf.int64), NONE)
    U = {1: tf.constant([1.0, 2.0]), 2: tf.constant(0.1, tf.float64)}
    V = {1: tf.constant([3.0, 4.0]), 2: tf.constant(0.1, tf.float64)}
    found = update.sums(U, V)
    assert found.dtype == tf.float64
    np.testing.assert_allclose(found, [11.01, 25.01, 0], rtol=1e-15)
