"""`Distributed` and `LearningRateWarmup` on one process.

`distributed_checks` has them on several.
"""

import keras
import numpy as np
import pytest

from tfkfac import callbacks
from tfkfac.distributed import communicator

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
Y = X @ np.ones([4, 1], "float32")


def compiled(learning_rate=0.03):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(learning_rate), "mse")
    return model


def fit(model, *given, epochs=2):
    return model.fit(
        X, Y, batch_size=3, epochs=epochs, shuffle=False, verbose=0,
        validation_data=(X, Y), callbacks=list(given),
    )  # fmt: skip


def pretend(monkeypatch, ranks):
    """Has callbacks see this many ranks, of which they ask nothing else."""

    class Ranks:
        size, rank = ranks, 0

    monkeypatch.setattr(communicator, "current", Ranks)


def test_one_process_trains_as_without():
    """The logs and the weights are the same, bit for bit."""
    alone, model = compiled(), compiled()
    expected = fit(alone).history
    assert fit(model, callbacks.Distributed()).history == expected
    for a, b in zip(alone.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(a, b)


def rates(warmup, learning_rate=0.03):
    """Returns the learning rate of each of three epochs of four batches."""
    model, found = compiled(learning_rate), []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: found.append(
            float(model.optimizer.learning_rate)
        )
    )
    fit(model, warmup, record, epochs=3)
    return found


def test_warmup_goes_up_linearly_from_the_part_of_one_rank(monkeypatch):
    """Of 4 ranks, over 2 epochs of 4 batches: 1/4 + 3/4 (batch / 8)."""
    pretend(monkeypatch, 4)
    found = rates(callbacks.LearningRateWarmup(epochs=2))
    parts = [1 / 4 + 3 / 4 * min(batch / 8, 1) for batch in range(12)]
    np.testing.assert_allclose(found, 0.03 * np.array(parts), rtol=1e-6)


def test_warmup_to_a_given_rate_in_given_steps(monkeypatch):
    """Each epoch begins anew; with 8 steps, of which 4 are taken."""
    pretend(monkeypatch, 2)
    warmup = callbacks.LearningRateWarmup(1, 8, learning_rate=0.08)
    found = rates(warmup)
    parts = [1 / 2 + 1 / 2 * batch / 8 for batch in range(4)]
    np.testing.assert_allclose(found, [0.08 * x for x in parts] + [0.08] * 8)


def test_warmup_on_one_process_changes_nothing():
    found = rates(callbacks.LearningRateWarmup(epochs=2))
    np.testing.assert_allclose(found, 0.03, rtol=1e-6)


def test_warmup_refuses_a_schedule():
    schedule = keras.optimizers.schedules.CosineDecay(0.03, 10)
    warmup = callbacks.LearningRateWarmup(learning_rate=0.03)
    with pytest.raises(ValueError, match="a learning rate that is a number"):
        fit(compiled(schedule), warmup)


def test_warmup_needs_the_number_of_batches():
    warmup = callbacks.LearningRateWarmup()
    warmup.set_params({"steps": None})
    warmup.set_model(compiled())
    with pytest.raises(ValueError, match="give steps_per_epoch"):
        warmup.on_train_begin()
