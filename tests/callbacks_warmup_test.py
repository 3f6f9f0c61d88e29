"""`LearningRateWarmup`, beside others that assign the rate."""

import keras
import numpy as np
import pytest
from callbacks_distributed_test import compiled, fit

from tfkfac import callbacks
from tfkfac.distributed import communicator


def pretend(monkeypatch, ranks):
    """Has callbacks see this many ranks, of which they ask nothing else."""

    class Ranks:
        size, rank = ranks, 0

    monkeypatch.setattr(communicator, "current", Ranks)


def rates(warmup, learning_rate=0.03, before=(), after=()):
    """Returns the learning rate of each of three epochs of four batches."""
    model, found = compiled(learning_rate), []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: found.append(
            float(model.optimizer.learning_rate)
        )
    )
    fit(model, *before, warmup, *after, record, epochs=3)
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
    """Also not what others assign; but there is a rate of its own."""
    found = rates(callbacks.LearningRateWarmup(epochs=2))
    np.testing.assert_allclose(found, 0.03, rtol=1e-6)
    other = scheduler(lambda epoch: 0.5)
    found = rates(callbacks.LearningRateWarmup(epochs=2), before=[other])
    np.testing.assert_allclose(found, 0.5, rtol=1e-6)
    found = rates(callbacks.LearningRateWarmup(2, learning_rate=0.08))
    np.testing.assert_allclose(found, 0.08, rtol=1e-6)


def scheduler(rate):
    return keras.callbacks.LearningRateScheduler(lambda epoch, _: rate(epoch))


@pytest.mark.parametrize("warm_first", [True, False])
def test_warmup_leaves_what_others_assign_at_its_end(monkeypatch, warm_first):
    """A schedule's step there, and a plateau's cut for good."""
    pretend(monkeypatch, 2)
    ramp = 0.03 * (1 / 2 + np.arange(4) / 8)
    step = scheduler(lambda epoch: 0.03 if epoch < 1 else 0.01)
    cut = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: (
            epoch == 0 and setattr(cut.model.optimizer, "learning_rate", 0.007)
        )
    )
    for other, rate in ((step, 0.01), (cut, 0.007)):
        order = {"after" if warm_first else "before": [other]}
        found = rates(callbacks.LearningRateWarmup(epochs=1), **order)
        np.testing.assert_allclose(found, [*ramp, *[rate] * 8], rtol=1e-6)


@pytest.mark.parametrize("epoch, rate", [(1, 0.03), (2, 0.03), (1, 0.02)])
def test_a_resumed_warmup_ends(monkeypatch, epoch, rate):
    """Where the run that it goes on was interrupted at its last batch."""
    pretend(monkeypatch, 2)
    model = compiled()
    warmup = callbacks.LearningRateWarmup(epochs=1)
    warmup.set_model(model)  # As `BackupAndRestore` restores after that.
    model.optimizer.learning_rate = 0.03 * 7 / 8 if epoch == 1 else rate
    if rate == 0.02:
        model.optimizer.learning_rate = rate
    fit(model, warmup, epochs=3, initial_epoch=epoch)
    assert float(model.optimizer.learning_rate) == pytest.approx(rate)


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


@pytest.mark.parametrize(
    "given",
    [
        {"epochs": 0},
        {"epochs": float("nan")},
        {"learning_rate": float("nan")},
        {"learning_rate": -1.0},
    ],
)
def test_numbers_of_a_warmup_are_refused(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        callbacks.LearningRateWarmup(**given)
