"""Periods that grow with the updates and are bounded by their cost."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from tfkfac.auto_period import HEAD_START, AutoPeriod
from tfkfac.schedules import Period


def add_variable(shape, initializer, dtype="float32", name=None):
    return keras.Variable(initializer, shape=shape, dtype=dtype, name=name)


def adapting(name):
    return AutoPeriod(name, 0.15, add_variable=add_variable)


def dues(period, cost, updates):
    found = []
    for t in range(updates):
        update = tf.constant(t, tf.int64)
        if bool(period.due(update, lambda: cost)):
            period.done(update)
            found.append(t)
    return found


def test_every_update_at_first_and_more_seldom_later():
    period = adapting("inverse_update_period")
    found = dues(period, 0.0, 1200)
    assert found[:12] == [*range(11), 12]
    gaps = np.diff(found)
    assert (np.diff(gaps) >= 0).all() and gaps.max() == 50 == period.most
    at_100 = next(g for t, g in zip(found, gaps) if t >= 100)
    assert 10 <= at_100 <= 12
    factors = adapting("factor_update_period")
    assert np.diff(dues(factors, 0.0, 300)).max() == 10


@pytest.mark.parametrize("cost", [1.0, 7.0, 200.0])
def test_no_more_than_its_share(cost):
    period = adapting("inverse_update_period")
    found = dues(period, cost, 1000)
    assert found[0] == 0
    for k, t in enumerate(found):  # k times before this one.
        assert k * cost <= 0.15 * (t + HEAD_START)
    spent = (len(found) - 1) * cost
    assert spent > 0.15 * (1000 + HEAD_START) - cost or np.diff(found)[-1] == 50


def test_numbers_do_not_depend_on_the_cost():
    period = Period("factor_update_period", 3, add_variable=add_variable)
    assert dues(period, 1e9, 9) == [0, 3, 6] and period.most == 3


def made(**options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    optimizer = tfkfac.KFAC(0.05, model=model, **options)
    model.compile(optimizer, "mse")
    return model, optimizer


def train(model, steps):
    for i in steps:
        rng = np.random.default_rng(i)
        model.train_on_batch(rng.normal(size=(6, 4)), rng.normal(size=(6, 2)))


def factor_updates(optimizer):
    """Returns their number, by the weight c = 1 - rho^k of the average."""
    weight = next(
        float(v) for k, v in optimizer.curvature.state().items()
        if k.endswith("input_factor/weight")
    )  # fmt: skip
    return round(np.log1p(-weight) / np.log(0.95))


def test_a_long_run_takes_fewer_statistics_and_is_resumed(tmp_path):
    whole, optimizer = made()
    train(whole, range(14))
    whole.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    tfkfac.attach(resumed)
    train(whole, range(14, 24))
    train(resumed, range(14, 24))
    for a, b in zip(whole.get_weights(), resumed.get_weights()):
        np.testing.assert_array_equal(a, b)
    expected = len(
        dues(
            adapting("factor_update_period"),
            0.0,
            24,
        )
    )
    assert expected < 18 and factor_updates(optimizer) <= expected


def test_a_small_budget_is_kept():
    counts = {}
    for overhead in (0.03, 30.0):
        model, optimizer = made(overhead=overhead)
        train(model, range(12))
        counts[overhead] = factor_updates(optimizer)
    assert counts[0.03] < counts[30.0] == 11


def test_turns_take_numbers():
    _, optimizer = made(refresh="staggered")
    assert {k: p.number for k, p in optimizer.periods.items()} == {
        "factor_update_period": 1,
        "inverse_update_period": 10,
    }


@pytest.mark.parametrize("overhead", [0, -1, "much", float("nan")])
def test_overheads_that_are_none(overhead):
    with pytest.raises(ValueError, match="overhead"):
        tfkfac.KFAC(overhead=overhead)
