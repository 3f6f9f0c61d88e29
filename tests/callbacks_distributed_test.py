"""`Distributed` and `LearningRateWarmup` on one process.

`distributed_checks` has them on several.
"""

import threading

import keras
import numpy as np
import pytest
import two_ranks

from tfkfac import callbacks
from tfkfac.callbacks.distributed import average_statistics
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


def fit(model, *given, epochs=2, **options):
    return model.fit(
        X, Y, batch_size=3, epochs=epochs, **options, shuffle=False, verbose=0,
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
    history = fit(model, callbacks.Distributed()).history
    assert history == expected
    for a, b in zip(alone.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(a, b)


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


class Moving(keras.layers.Layer):
    """Counts of its own, and a table that is not trained."""

    def build(self, shape):
        self.table = self.add_weight(shape=(3,), trainable=False)
        self.seen = self.add_weight(shape=(2,), trainable=False)

    def call(self, x):
        return x


def of_three_ranks():
    """Returns models with other statistics, and equal frozen weights."""
    found = []
    for rank in range(3):
        keras.utils.set_random_seed(0)
        frozen = keras.layers.Dense(40, trainable=False)
        norm = keras.layers.BatchNormalization()
        model = keras.Sequential(
            [keras.Input((4,)), frozen, norm, Moving(), keras.layers.Dense(1)]
        )
        model.compile("sgd", "mse")
        values = np.random.default_rng(rank).normal(size=40)
        values[:20] = 1 / 3
        norm.moving_mean.assign(values)
        model.layers[2].seen.assign([rank, 7])
        found.append(model)
    return found


def test_statistics_are_averaged_and_frozen_weights_are_not(monkeypatch):
    """Only what differs is sent; what is equal keeps its bits."""
    models, own, sent = of_three_ranks(), {}, []
    before = [model.get_weights() for model in models]
    means = [model.layers[1].moving_mean.numpy() for model in models]
    monkeypatch.setattr(
        communicator, "current", lambda: own[threading.get_ident()]
    )
    original = two_ranks.Threads.all_reduce

    def all_reduce(self, tensor, name):
        sent.append(tensor.shape[0])
        return original(self, tensor, name)

    monkeypatch.setattr(two_ranks.Threads, "all_reduce", all_reduce)

    def of_rank(ranks):
        own[threading.get_ident()] = ranks
        average_statistics(models[ranks.rank])
        average_statistics(models[ranks.rank])

    two_ranks.run(3, of_rank)
    assert sent == [42] * 3
    for model in models:
        norm, moving = model.layers[1:3]
        np.testing.assert_allclose(
            norm.moving_mean, np.mean(means, axis=0), rtol=1e-6
        )
        assert np.all(norm.moving_mean[:20] == np.float32(1 / 3))
        assert moving.seen.numpy().tolist() == [1, 7]
        moved = {id(norm.moving_mean), id(moving.seen)}
        for v, value in zip(model.weights, before[0]):
            if id(v) not in moved:
                np.testing.assert_array_equal(v, value)
