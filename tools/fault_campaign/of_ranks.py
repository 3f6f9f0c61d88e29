"""Ranks that come to differ in `fit`: callbacks, numbers, windows, weights."""

import keras
import numpy as np

import tfkfac
from tools.fault_campaign import small
from tools.fault_campaign.joint import (
    ANY,
    At,
    assert_equal,
    fit,
    models,
    of_one,
    on_ranks,
    sgd,
    share,
)


class _Rates(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(float(self.model.optimizer.learning_rate))


@on_ranks(2)
def a_schedule_takes_over_from_the_warmup(ranks, folder):
    rates = _Rates()
    scheduler = keras.callbacks.LearningRateScheduler(
        lambda epoch, rate: 0.1 if epoch < 2 else 0.01
    )
    warmup = tfkfac.callbacks.LearningRateWarmup(epochs=2)
    fit(ranks, sgd(), warmup, scheduler, rates, epochs=5)
    np.testing.assert_allclose(rates.values[6:], 0.01, rtol=1e-6)


def _window(kind):
    more = {"gradient_accumulation_steps": 2}
    return small.compiled(**more) if kind == "kfac" else sgd(**more)


class _Interrupt(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            raise InterruptedError


def _interrupted_window(kind, ranks, folder):
    """Three batches an epoch: the backup is in the middle of a window of 2."""
    whole = fit(ranks, _window(kind), epochs=4)
    for stop in ([_Interrupt()], []):
        backup = tfkfac.callbacks.BackupAndRestore(
            folder / "backup", delete_checkpoint=False
        )
        model = _window(kind)
        try:
            fit(ranks, model, backup, *stop, epochs=4)
        except InterruptedError:
            ranks.gather_objects(None)
    small.assert_same(model, whole, rtol=1e-6)
    assert_equal(ranks, small.weights(model))


@on_ranks(2)
def a_backup_in_a_window_of_KFAC(ranks, folder):  # noqa: N802
    _interrupted_window("kfac", ranks, folder)


@on_ranks(2)
def a_backup_in_a_window_of_SGD(ranks, folder):  # noqa: N802
    _interrupted_window("sgd", ranks, folder)


@on_ranks(2)
def two_fits_in_windows(ranks, folder):
    """As one process on the joint batches."""
    model = _window("sgd")
    for _ in range(2):
        fit(ranks, model)
    every = ranks.gather_objects(share(ranks))
    x, y = (
        np.concatenate([part[i : i + 4] for i in (0, 4, 8) for part in parts])
        for parts in zip(*every)
    )
    alone = small.compiled(
        optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    )
    for _ in range(2):
        small.fit(alone, x, y, batch_size=4 * ranks.size)
    small.assert_same(model, alone, rtol=1e-5)


@on_ranks(3)
def a_frozen_layer_on_three_ranks(ranks, folder):
    """No bit of it changes."""
    keras.utils.set_random_seed(0)
    frozen = keras.layers.Dense(500)
    frozen.trainable = False
    layers = [keras.Input((6,)), frozen, keras.layers.Dense(3)]
    model = small.compiled(keras.Sequential(layers))
    before = frozen.get_weights()
    fit(ranks, model, epochs=3)
    for a, b in zip(before, frozen.get_weights()):
        np.testing.assert_array_equal(a, b)


@of_one(ANY + "validation|validation.*" + ANY, rank=0)
def validation_on_one_alone(ranks, folder, is_one):
    more = {"validation_data": share(ranks)} if is_one else {}
    fit(ranks, small.compiled(), epochs=2, **more)


@of_one(ANY + "stop", either=True, rank=0)
def one_stops(ranks, folder, is_one):
    def stop(model):
        model.stop_training = is_one

    return fit(ranks, small.compiled(), At(1, stop), epochs=4)


@of_one(ANY + "(backup|epoch|BackupAndRestore)|BackupAndRestore.*" + ANY)
def backups_in_different_states(ranks, folder, is_one):
    place = folder / f"backup_{ranks.rank}"
    for epochs in (2, 4):
        backup = tfkfac.callbacks.BackupAndRestore(
            place if is_one or epochs == 4 else folder / "backup_0",
            delete_checkpoint=False,
        )
        fit(ranks, small.compiled(), backup, epochs=epochs)


@of_one(ANY + "stop", either=True)
def NaN_ends_one(ranks, folder, is_one):  # noqa: N802
    x, y = share(ranks)
    if is_one:
        x[5] = np.nan
    model = small.compiled(max_skipped_steps=50)
    callbacks = [
        tfkfac.callbacks.Distributed(),
        keras.callbacks.TerminateOnNaN(),
    ]
    return small.fit(model, x, y, epochs=3, batch_size=4, callbacks=callbacks)


@of_one(ANY + "epoch")
def one_begins_with_another_epoch(ranks, folder, is_one):
    fit(ranks, small.compiled(), epochs=4, initial_epoch=2 * is_one)


@of_one(ANY + "batches.*[Gg]ive all ranks the same")
def one_has_more_batches(ranks, folder, is_one):
    data = share(ranks, 12 + 8 * is_one)
    small.fit(
        small.compiled(),
        *data,
        batch_size=4,
        callbacks=[tfkfac.callbacks.Distributed()],
    )


@of_one(ANY + "epoch 1 of [23].*Give all ranks the same")
def one_has_more_epochs(ranks, folder, is_one):
    fit(ranks, small.compiled(), epochs=2 + is_one)


@of_one(ANY + "rate", either=True)
def plateaus_of_each_rank(ranks, folder, is_one):
    """The callback before `Distributed` sees losses of its rank alone."""
    plateau = keras.callbacks.ReduceLROnPlateau(
        patience=1, min_delta=10.0 * is_one, factor=0.1
    )
    model = small.compiled()
    fit(
        ranks,
        model,
        plateau,
        tfkfac.callbacks.Distributed(),
        epochs=6,
        distributed=False,
        validation_data=share(ranks),
    )
    return model


@of_one(ANY + "rate", either=True)
def a_rate_assigned_on_one(ranks, folder, is_one):
    def assign(model):
        if is_one:
            model.optimizer.learning_rate = 0.5

    for model in models():
        fit(ranks, model, At(1, assign), epochs=3)
        assert_equal(ranks, small.weights(model))


@of_one(ANY + "damping", either=True)
def a_damping_assigned_on_one(ranks, folder, is_one):
    def assign(model):
        if is_one:
            model.optimizer.damping = 0.9

    return fit(ranks, small.compiled(), At(1, assign), epochs=3)


@of_one(None, rank=0)
def one_loads_weights_between_fits(ranks, folder, is_one):
    for model in models():
        fit(ranks, model)
        if is_one:
            model.set_weights([w + 1 for w in model.get_weights()])
        expected = ranks.broadcast_object(small.weights(model))
        fit(ranks, model, epochs=1, steps_per_epoch=1)
        assert_equal(ranks, small.weights(model))
        moved = np.abs(small.weights(model) - expected).max()
        assert moved < 0.5, moved


@of_one(None)
def weights_of_one_are_others(ranks, folder, is_one):
    for model in models():
        for _ in range(2):
            if is_one:
                model.set_weights([w + 1 for w in model.get_weights()])
            fit(ranks, model)
            assert_equal(ranks, small.weights(model))
