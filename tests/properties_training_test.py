"""Laws of what is saved, and of factors, on inputs of hypothesis."""

import json

import keras
import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from properties_test import POSITIVE, SEEDS, law, moment, normal

import tfkfac
from tfkfac.factors import DenseFactor, DiagonalFactor


def attached(**settings):
    """Returns a model of one layer and its optimizer."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, name="dense")]
    )
    kfac = tfkfac.KFAC(0.0, model=model, fisher="empirical", **settings)
    model.compile(kfac, "mse", run_eagerly=True)
    return model, kfac


# What is saved.


def from_0(to):
    """0, and numbers that float32 does not round to it."""
    return st.one_of(st.just(0.0), st.floats(1e-30, to))


NUMBERS = {
    "learning_rate": from_0(10),
    "damping": st.one_of(POSITIVE, st.sampled_from(["auto"])),
    "momentum": from_0(0.999),
    "factor_decay": from_0(0.999),
    "kl_clip": st.one_of(POSITIVE, st.none(), st.sampled_from(["auto"])),
    "norm_damping": st.one_of(POSITIVE, st.none()),
    "embedding_damping": st.one_of(POSITIVE, st.none()),
    "factor_update_period": st.one_of(
        st.integers(1, 99), st.builds(tfkfac.LateInterval, st.floats(0.1, 99))
    ),
    "inverse_update_period": st.one_of(
        st.integers(1, 99), st.sampled_from(["auto"])
    ),
    "inverter": st.sampled_from(["cholesky", "eigen"]),
    "strategy": st.one_of(st.integers(1, 9), st.sampled_from(["owner"])),
    "skip": st.lists(st.text(), max_size=2),
    "seed": SEEDS,
    "weight_decay": st.one_of(from_0(1), st.none()),
    "overhead": POSITIVE,
}


@law(12)
@given(st.fixed_dictionaries({}, optional=NUMBERS))
def test_a_configuration_makes_the_same_optimizer(arguments):
    """Through JSON, as files hold it."""
    config = tfkfac.KFAC(**arguments).get_config()
    config = json.loads(json.dumps(config))
    assert tfkfac.KFAC.from_config(config).get_config() == config


@law(3)
@given(st.sampled_from(["cholesky", "eigen"]), st.integers(1, 3))
def test_a_state_tree_makes_the_same_state(inverter, steps):
    """In a model made anew, whose next step is then the same, too."""
    x, y = normal(0, 5, 4, dtype="float32"), normal(1, 5, 3, dtype="float32")
    model, kfac = attached(inverter=inverter)
    kfac.learning_rate = 0.1
    for _ in range(steps):
        model.train_on_batch(x, y)
    tree = model.get_state_tree("numpy_array")
    other, kfac_of_other = attached(inverter=inverter)
    other.set_state_tree(tree)
    for _ in range(2):
        pairs = [(model.get_weights(), other.get_weights())]
        states = [k.curvature.state() for k in (kfac, kfac_of_other)]
        assert list(states[0]) == list(states[1])
        pairs.append([list(state.values()) for state in states])
        for own, of_other in pairs:
            for value, expected in zip(of_other, own):
                np.testing.assert_array_equal(value, expected)
        model.train_on_batch(x, y)
        other.train_on_batch(x, y)


# Factors.


def factors(x, y):
    """Returns A and G of a layer from one step on a batch."""
    model, kfac = attached(kl_clip=None)
    model.train_on_batch(x, y)
    state = kfac.curvature.state()
    return {
        kind: state[f"dense/{kind}/moment"] / state[f"dense/{kind}/weight"]
        for kind in ("input_factor", "output_factor")
    }


@law(3)
@given(st.integers(2, 9), st.data())
def test_factors_do_not_depend_on_the_size_of_the_batch(n, data):
    """The batch twice has its factors; those of two parts have them as mean.

    Parts of a rows and b rows have the weights a / (a + b) and b / (a + b).
    """
    cut = data.draw(st.integers(1, n - 1))
    x = normal(n, n, 4, dtype="float32")
    y = normal(n + 100, n, 3, dtype="float32")
    whole = factors(x, y)
    twice = factors(np.tile(x, (2, 1)), np.tile(y, (2, 1)))
    first, second = factors(x[:cut], y[:cut]), factors(x[cut:], y[cut:])
    for kind, X in whole.items():
        mean = (cut * first[kind] + (n - cut) * second[kind]) / n
        atol = 1e-5 * np.abs(X).max()
        np.testing.assert_allclose(twice[kind], X, rtol=1e-5, atol=atol)
        np.testing.assert_allclose(mean, X, rtol=1e-5, atol=atol)


@law(30)
@given(
    st.booleans(),
    st.lists(st.floats(0, 0.99), min_size=1, max_size=5),
    st.integers(1, 4),
)
def test_an_average_of_equal_moments_is_the_moment(diagonal, decays, dim):
    """However it decays; and the first factor is the first moment."""
    kind = DiagonalFactor if diagonal else DenseFactor
    factor = kind("input_factor", 1, dim, rows_are_terms=True)
    factor.build(lambda name, initial: tf.Variable(initial), tf.float64, False)
    X = moment(factor.shape, dim, "float64").total
    for rho in decays:
        factor.update(X, tf.constant(rho, tf.float64))
        np.testing.assert_allclose(factor.value(), X, rtol=1e-12)
