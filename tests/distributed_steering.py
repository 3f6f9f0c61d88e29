"""Checks on two ranks of what one of them decides alone.

horovodrun -np 2 python tests/distributed_ranks.py folder distributed_steering
"""

import contextlib

import keras
import numpy as np
import tensorflow as tf
from distributed_ranks import (
    LOSS,
    RANK,
    X,
    Y,
    dense,
    equal_on_all_ranks,
    kfac,
    raises,
    weights,
)

import tfkfac
from tfkfac import callbacks
from tfkfac.distributed.roll_call import RanksError

Lambda = keras.callbacks.LambdaCallback
OTHER_X = np.random.default_rng(9 + RANK).normal(size=(10 + 80 * RANK, 6))
OTHER_Y = np.random.default_rng(9 + RANK).integers(0, 3, 10 + 80 * RANK)


def compiled(optimizer=None, **options):
    model = dense()
    optimizer = optimizer or keras.optimizers.SGD(0.1)
    model.compile(tfkfac.distribute(optimizer), LOSS, **options)
    return model


def fit(model, *given, x=X, y=Y, **options):
    return model.fit(
        x, y, verbose=0, **{"batch_size": 4, "shuffle": False, **options},
        callbacks=[callbacks.Distributed(), *given],
    )  # fmt: skip


@contextlib.contextmanager
def told(*words):
    """All ranks have to be told, and not by Horovod after 60 seconds."""
    with raises(RanksError, *words):
        try:
            yield
        except RanksError as error:
            assert "shut down" not in str(error.__cause__), error.__cause__
            raise


def on_rank(rank, **hooks):
    return Lambda(**hooks) if rank == RANK else Lambda()


def stop(model, at):
    """Returns a function that stops training at an epoch or batch."""

    def of(i, logs=None):
        model.stop_training = model.stop_training or i == at

    return of


def check_warmup_leaves_what_others_assign_at_its_end(folder):
    model, rates = compiled(), []
    schedule = keras.callbacks.LearningRateScheduler(
        lambda epoch, rate: 0.1 if epoch < 2 else 0.01
    )
    record = Lambda(
        on_train_batch_end=lambda batch, logs: rates.append(
            float(model.optimizer.learning_rate)
        )
    )
    warmup = callbacks.LearningRateWarmup(epochs=2)
    fit(model, warmup, schedule, record, epochs=4)
    expected = [0.05, 0.0625, 0.075, 0.0875] + 4 * [0.01]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def check_one_rank_stops(folder):
    """In mid-epoch, where the others are in a step, and at its end."""
    stopped = "its stop_training is set"
    for make in (compiled, lambda: compiled(run_eagerly=True)):
        model = make()
        hook = {"on_train_batch_end": stop(model, 0)}
        with told("Rank 0: in batch 2 of epoch 1.", "Rank 1: at the end of",
                  "epoch 1, after 1 batches, where " + stopped):  # fmt: skip
            fit(model, on_rank(1, **hook))
    model = dense()
    model.compile(kfac(model), LOSS)
    hook = {"on_epoch_end": stop(model, 0)}
    with told("Rank 0: at the end of training, after epoch 1, where " + stopped,
              "Rank 1: in batch 1 of epoch 2"):  # fmt: skip
        fit(model, on_rank(0, **hook), epochs=3)
    model = dense()
    model.compile(kfac(model, gradient_accumulation_steps=2), LOSS)
    hook = {"on_train_batch_end": stop(model, 1)}
    with told("Rank 0: at the end of epoch 1", "Rank 1: in batch 3 of epoch 1"):
        fit(model, on_rank(0, **hook), batch_size=2)


def check_one_rank_sees_nan(folder):
    model = compiled()
    bad = X * np.where(np.arange(8) < 4, 1, np.nan)[:, None] if RANK else X
    terminate = keras.callbacks.TerminateOnNaN()
    with told("Rank 1: at the end of epoch 1, after 1 batches"):
        fit(model, terminate, x=bad[::-1], y=Y[::-1])


def check_one_rank_validates(folder):
    options = {"validation_data": (X, Y)} if RANK == 0 else {}
    with told("Rank 0: at the beginning of an evaluation in epoch 1.",
              "Rank 1: "):  # fmt: skip
        fit(compiled(), epochs=2, **options)
    with told("Rank 0: at the beginning of an evaluation in epoch 1.",
              "Rank 1: at the end of training"):  # fmt: skip
        fit(compiled(), **options)


def check_other_epochs_and_batches(folder):
    for options, words in (
        ({"initial_epoch": 1 - RANK}, "Rank 0: at the beginning of epoch 2"),
        ({"epochs": 3 + RANK}, "Rank 1: at the beginning of epoch 1 of 4"),
        ({"batch_size": 4 * (1 + RANK)}, "with 1 batches in each"),
        ({"initial_epoch": 9 * RANK}, "Rank 1: at the end of training, with"),
    ):
        with told(words, "The ranks do not do the same."):
            fit(compiled(), **{"epochs": 3, **options})
    with told("Rank 1: in ModelCheckpoint, epoch 1, after batch 1",
              "Rank 0: in batch 2 of epoch 1"):  # fmt: skip
        fit(compiled(), *[
            callbacks.ModelCheckpoint(f"{folder}/a.weights.h5", save_freq=1,
                                      save_weights_only=True)
        ] * RANK)  # fmt: skip


def check_numbers_of_one_rank(folder):
    """Assigned between steps, in `fit` and in a loop of one's own."""
    model = compiled()
    with told("Rank 1 steps with learning_rate = 0.05, and rank 0 with 0.1"):
        fit(model, on_rank(1, on_train_batch_begin=lambda batch, logs: setattr(
            model.optimizer, "learning_rate", 0.1 / (1 + batch))))  # fmt: skip
    model = dense()
    model.compile(kfac(model), LOSS)
    model.train_on_batch(X, Y)
    for name in ("learning_rate", "damping", "momentum", "kl_clip"):
        before = float(getattr(model.optimizer, name))
        if RANK == 1:
            setattr(model.optimizer, name, before / 2)
        with raises(
            tf.errors.InvalidArgumentError, f"Rank 1 steps with {name}"
        ):
            model.train_on_batch(X, Y)
        setattr(model.optimizer, name, before)
    model.train_on_batch(X, Y)
    assert equal_on_all_ranks(weights(model))


def check_a_plateau_is_that_of_all_ranks(folder):
    """Also for callbacks before `Distributed`, by the data of all ranks."""
    model, logs = compiled(metrics=["accuracy"]), []
    plateau = keras.callbacks.ReduceLROnPlateau(patience=0, min_delta=9.0)
    early = keras.callbacks.EarlyStopping("val_accuracy", patience=3)
    model.fit(
        X, Y, verbose=0, batch_size=4, epochs=3,
        validation_data=(OTHER_X, OTHER_Y),
        callbacks=[plateau, early, callbacks.Distributed(),
                   Lambda(on_epoch_end=lambda i, found: logs.append(found))],
    )  # fmt: skip
    assert float(model.optimizer.learning_rate) < 0.01
    assert equal_on_all_ranks(logs) and equal_on_all_ranks(weights(model))


def check_metrics_are_means_over_all_examples(folder):
    """Validation and `evaluate`, of 10 and 90 examples."""
    every = np.concatenate, tfkfac.init().gather_objects((OTHER_X, OTHER_Y))
    joint = [every[0](values) for values in zip(*every[1])]
    names = ["accuracy", keras.metrics.AUC(multi_label=True, from_logits=True)]
    one_hot = keras.utils.to_categorical
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model = dense()
    optimizer = tfkfac.distribute(keras.optimizers.SGD(0.1))
    model.compile(optimizer, loss, metrics=names)
    own = OTHER_X, one_hot(OTHER_Y, 3)
    history = fit(model, y=one_hot(Y, 3), validation_data=own).history
    own_state = [float(m.total) for m in model.metrics[:1]]
    found = model.evaluate(*own, verbose=0, callbacks=[callbacks.Distributed()])
    assert not equal_on_all_ranks(own_state)
    alone = model.evaluate(*own, verbose=0)
    expected = model.evaluate(joint[0], one_hot(joint[1], 3), verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(alone[0] - found[0]) > 1e-4
    validation = [history[f"val_{m}"][0] for m in ("loss", "accuracy")]
    np.testing.assert_allclose(validation, expected[:2], rtol=1e-5)
    assert equal_on_all_ranks(history)


class At(keras.callbacks.Callback):
    """Compares the weights at the first batch."""

    def __init__(self, expected):
        super().__init__()
        self.expected = expected

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            np.testing.assert_array_equal(weights(self.model), self.expected)


def check_each_fit_starts_from_rank_0(folder):
    """Whatever a rank was given since the last one."""
    for model in (compiled(), dense()):
        if not model.compiled:
            model.compile(kfac(model), LOSS)
        fit(model)
        for rank in (1, 0):
            if rank == RANK:
                model.set_weights([3 * w for w in model.get_weights()])
            expected = tfkfac.init().broadcast_object(weights(model))
            fit(model, At(expected))
        assert equal_on_all_ranks(weights(model))


def check_weights_of_one_rank_are_seen(folder):
    """Where a callback assigns them, or nothing averages the gradients."""
    for trainable in (True, False):
        model = dense()
        model.layers[0].trainable = trainable
        model.compile(tfkfac.distribute(keras.optimizers.SGD(0.1)), LOSS)
        kernel = model.layers[0].kernel
        hook = Lambda(on_train_batch_end=lambda batch, logs, kernel=kernel: (
            RANK and kernel.assign_add([[0.1] * 5] * 6)
        ))  # fmt: skip
        with told("Rank 1 has other weights than rank 0 at the end of epoch 1",
                  "hidden/kernel"):  # fmt: skip
            fit(model, hook)

    class Alone(keras.Sequential):
        def train_step(self, data):
            return super().train_step(data)

    model = Alone(dense().layers)
    model.compile(keras.optimizers.Adam(0.01), LOSS)
    with told("tfkfac.distribute(optimizer)"):
        fit(model)
    model = dense()
    model.compile(keras.optimizers.Adam(), LOSS)
    with raises(ValueError, "Adam averages no gradients", "distribute"):
        fit(model)


def check_an_evaluation_within_fit_leaves_its_logs_joint(folder):
    """By a callback that gives `evaluate` a `Distributed` of its own."""
    model = compiled()
    hook = Lambda(
        on_epoch_end=lambda epoch, logs: model.evaluate(
            X, Y, verbose=0, callbacks=[callbacks.Distributed()]
        )
    )
    assert equal_on_all_ranks(fit(model, hook, epochs=3).history["loss"])
