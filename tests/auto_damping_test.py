"""Damping that is "auto", until a number is assigned."""

import keras
import numpy as np
import pytest

import tfkfac


def compiled(damping="auto", **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(4, "tanh"),
         keras.layers.Dense(2)]
    )  # fmt: skip
    optimizer = tfkfac.KFAC(0.1, damping=damping, model=model, **options)
    model.compile(optimizer, "mse")
    return model


def train(model, steps=4, seed=0):
    rng = np.random.default_rng(seed)
    x, y = 3 * rng.normal(size=(16, 5)) + 2, rng.normal(size=(16, 2))
    for _ in range(steps):
        model.train_on_batch(x.astype("float32"), y.astype("float32"))
    return np.concatenate([np.ravel(w) for w in model.get_weights()])


def test_it_is_the_default_and_its_configuration():
    model = compiled()
    assert float(model.optimizer.damping) == pytest.approx(3e-3)
    config = tfkfac.KFAC().get_config()
    assert config["damping"] == "auto"
    assert tfkfac.KFAC.from_config(config).get_config() == config


def test_a_number_that_is_assigned_is_what_it_says():
    given, assigned, kept = compiled(0.01), compiled(), compiled()
    assigned.optimizer.damping = 0.01
    expected = train(given)
    np.testing.assert_array_equal(train(assigned), expected)
    assert np.max(np.abs(train(kept) - expected)) > 1e-3


def test_it_may_be_assigned_between_steps_without_retracing():
    model = compiled(inverse_update_period=1)
    train(model, 2)
    traces = model.train_function
    model.optimizer.damping = 1e6
    before = train(model, 0)
    assert np.max(np.abs(train(model, 1) - before)) < 0.05
    assert model.train_function is traces


@pytest.mark.parametrize("assign", [False, True])
def test_a_run_goes_on_from_a_file(assign, tmp_path):
    whole = compiled()
    train(whole)
    if assign:
        whole.optimizer.damping = 0.02
    whole.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    tfkfac.attach(resumed)
    np.testing.assert_array_equal(train(resumed), train(whole))
    expected = 0.02 if assign else 3e-3
    assert float(resumed.optimizer.damping) == pytest.approx(expected)


@pytest.mark.parametrize("inverter", ["eigen", tfkfac.CholeskyInverter(pi=1.0)])
def test_other_inverters_take_the_number(inverter):
    auto, given = compiled(inverter=inverter), compiled(3e-3, inverter=inverter)
    np.testing.assert_array_equal(train(auto), train(given))


def test_micro_steps_are_one_batch():
    micro = compiled(
        gradient_accumulation_steps=2, fisher="empirical", momentum=0.0
    )
    whole = compiled(fisher="empirical", momentum=0.0)
    rng = np.random.default_rng(0)
    x = 3 * rng.normal(size=(16, 5)).astype("float32") + 2
    y = rng.normal(size=(16, 2)).astype("float32")
    for part in (slice(0, 8), slice(8, 16)):
        micro.train_on_batch(x[part], y[part])
    whole.train_on_batch(x, y)
    for a, b in zip(micro.get_weights(), whole.get_weights()):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
