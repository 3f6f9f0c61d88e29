"""The schedules of Osawa et al. 2019, and the intervals as periods."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from tfkfac import schedules

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


def test_interval_of_a_fraction_of_updates():
    """ImageNet at 32,768: epoch 5 is complete after 195.49 updates."""
    interval = tfkfac.GrowingInterval(1_281_167 / 32_768)
    assert [int(interval(t)) for t in (0, 195, 196, 390, 391)] == [
        1, 1, 6, 6, 11,
    ]  # fmt: skip


def test_warmup_damping_is_the_recursion():
    """Equations 13 and 14 with table 3 at 32,768: alpha = 4 / 59."""
    damping = schedules.WarmupDamping(2e-2, 2e-4, 59)
    # (1 - 4 / 59) 0.02 + 4 / 59 0.0002
    assert float(damping(1)) == pytest.approx(0.018657627, rel=1e-6)
    gamma = 2e-2
    for t in range(200):
        assert float(damping(t)) == pytest.approx(gamma, rel=1e-6)
        gamma = (1 - 4 / 59) * gamma + 4 / 59 * 2e-4
    # It is not there yet after the warm-up, and goes on.
    assert 2.35 < float(damping(59)) / 2e-4 < 2.77
    assert float(damping(200)) / 2e-4 < 1.001


def test_polynomial_decay_by_hand():
    """Equation 15 at 4,096: eta(0) = 8.18e-3, power 11, epochs 1 to 53."""
    rate = schedules.EpochPolynomialDecay(
        8.18e-3, 1_281_167 / 4096, start=1, end=53, power=11
    )
    assert float(rate(0)) == float(rate(312)) == np.float32(8.18e-3)
    # Update 3,128 is epoch 10.000482: (1 - 9.000482 / 52)^11 = 0.1236126.
    assert float(rate(3128)) == pytest.approx(8.18e-3 * 0.1236126, rel=1e-6)
    assert float(rate(10_947)) == pytest.approx(
        8.18e-3 * ((53 - 10_947 * 4096 / 1_281_167) / 52) ** 11, rel=1e-6
    )
    assert float(rate(53 * 313)) == 0.0
    assert float(rate(10**6)) == 0.0


def test_momentum_follows_the_learning_rate():
    """Equation 16: half the learning rate, half the momentum."""
    rate = schedules.EpochPolynomialDecay(0.2, 10, start=0, end=2, power=1)
    momentum = schedules.CoupledMomentum(0.9, rate)
    found = [float(momentum(t)) for t in (0, 5, 10, 15, 20)]
    assert found == pytest.approx([0.9, 0.675, 0.45, 0.225, 0.0], rel=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: schedules.WarmupDamping(1e-4, 1e-3, 9), "initial=0.0001"),
        (lambda: schedules.WarmupDamping(1e-3, 0, 9), "target=0"),
        (lambda: schedules.WarmupDamping(1e-1, 1e-3, 4), "warmup_steps=4"),
        (lambda: schedules.CoupledMomentum(1.0, 0.1), "initial=1.0"),
        (lambda: schedules.CoupledMomentum(0.9, 0.1), "learning_rate=0.1"),
        (lambda: decay(0, 2), "steps_per_epoch=0"),
        (lambda: decay(9, -1), "start=-1"),
        (lambda: decay(9, 3), "end=3"),
        (lambda: decay(math.nan, 2), "steps_per_epoch=nan"),
    ],
)
def test_numbers_that_make_no_schedule(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def decay(steps_per_epoch, start):
    return schedules.EpochPolynomialDecay(
        0.1, steps_per_epoch, start=start, end=3, power=2
    )


def test_refusals():
    with pytest.raises(ValueError, match="steps_per_epoch"):
        tfkfac.GrowingInterval(0)
    with pytest.raises(ValueError, match="after"):
        tfkfac.LateInterval(3, after=-1)


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
