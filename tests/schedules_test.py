"""Intervals of Osawa et al. 2019 as periods."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac

SPE = 3  # Steps per epoch.
KINDS = {
    tfkfac.GrowingInterval: lambda epoch: min(20, 5 * (epoch // 5) + 1),
    tfkfac.LateInterval: lambda epoch: 1 if epoch < 13 else 20,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [0, 20])
def test_interval_of_the_completed_epochs(kind, after):
    interval = kind(SPE, after=after)
    for update in range(100):
        expected = 1 if update < after else KINDS[kind](update // SPE)
        assert int(interval(tf.constant(update, tf.int64))) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_both_periods_of_kfac(kind, tmp_path):
    """Factors and inverses change together, when the rule says; also saved."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    interval = kind(SPE)
    optimizer = tfkfac.KFAC(
        0.01,
        factor_update_period=interval,
        inverse_update_period=interval,
        model=model,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    tfkfac.attach(model)
    rng = np.random.default_rng(0)
    before, last = {}, None
    for update in range(70):
        x = rng.normal(size=(8, 4)).astype("float32")
        model.train_on_batch(x, rng.integers(0, 3, 8))
        state = model.optimizer.curvature.state()
        due = last is None or update >= last + KINDS[kind](update // SPE)
        last = update if due else last
        for name in ("moment", "inverse"):
            key = f"dense/input_factor/{name}"
            changed = not np.array_equal(before.get(key), state[key])
            assert changed == due, (update, name)
        before = state


def test_refusals():
    with pytest.raises(ValueError, match="steps_per_epoch"):
        tfkfac.GrowingInterval(0)
    with pytest.raises(ValueError, match="after"):
        tfkfac.LateInterval(3, after=-1)
