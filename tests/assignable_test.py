"""Numbers of `KFAC`: read, assigned, and as functions of the update."""

import keras
import numpy as np
import pytest
from classifier import LOSS, X, Y, compiled, flat, small

import tfkfac


def test_numbers_are_assigned_without_retracing():
    traces = []

    class Watched(tfkfac.Categorical):
        def sample(self, outputs, uniforms):
            traces.append(1)
            return super().sample(outputs, uniforms)

    model, optimizer = compiled(
        likelihood=Watched(), kl_clip=float("inf"), momentum=0.9
    )
    model.train_on_batch(X, Y)
    seen = len(traces)
    optimizer.damping, optimizer.momentum, optimizer.kl_clip = 1e6, 0.0, 1.0
    before = flat(model)
    model.train_on_batch(X, Y)
    assert len(traces) == seen
    assert float(optimizer.damping) == 1e6
    for _ in range(9):  # Until the next inversion takes the new damping.
        model.train_on_batch(X, Y)
    before = flat(model)
    model.train_on_batch(X, Y)
    assert np.abs(flat(model) - before).max() < 1e-6
    with pytest.raises(ValueError, match="damping"):
        optimizer.damping = -1.0


def test_schedules_cannot_be_assigned():
    schedule = keras.optimizers.schedules.PolynomialDecay(0.1, 10, 0.01)
    _, optimizer = compiled(damping=schedule, kl_clip=None)
    with pytest.raises(TypeError, match="schedule"):
        optimizer.damping = 0.2
    with pytest.raises(TypeError, match="kl_clip=None"):
        optimizer.kl_clip = 0.2


def test_learning_rate_schedules_count_updates():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [1], [0.1, 0.0]
    )
    model = small()
    optimizer = tfkfac.KFAC(schedule, damping=0.1, momentum=0.0, model=model)
    model.compile(optimizer, LOSS)
    bad = np.full_like(X, np.nan)
    weights = [flat(model)]
    for batch in (bad, X, X, X):
        model.train_on_batch(batch, Y)
        weights.append(flat(model))
    moved = [np.abs(b - a).max() > 1e-6 for a, b in zip(weights, weights[1:])]
    assert moved == [False, True, True, False]


@pytest.mark.parametrize(
    "name, meant",
    [
        ("lr", "learning_rate"),
        ("learn_rate", "learning_rate"),
        ("epsilon", "damping"),
        ("inv_update_freq", "inverse_update_period"),
        ("clip_norm", "clipnorm"),
    ],
)
def test_mistaken_names_are_not_assigned(name, meant):
    optimizer = tfkfac.KFAC()
    expected = f"no attribute '{name}', .*did you mean {meant}\\?"
    with pytest.raises(AttributeError, match=expected):
        setattr(optimizer, name, 0.5)
    assert not hasattr(optimizer, name)


def test_attributes_of_keras_and_of_ones_own_are_assigned():
    class Own(tfkfac.KFAC):
        def __init__(self, warmup=0, **options):
            super().__init__(**options)
            self.rates, self.learning_rates_seen = [], 3
            self.warmup, self.options = warmup, options

    optimizer = Own(5)
    assert optimizer.warmup == 5
    with pytest.raises(AttributeError, match="did you mean damping"):
        optimizer.dampng = 0.1
    optimizer.weight_decay, optimizer.clipnorm = 0.1, 1.0
    optimizer._lr = optimizer.anything = 1
    assert optimizer.learning_rates_seen == 3
