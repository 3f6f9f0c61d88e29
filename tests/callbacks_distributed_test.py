"""`Distributed` on one process, and statistics of three.

`distributed_checks` and `distributed_steering` have it on two.
"""

import threading

import keras
import numpy as np
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


def test_one_process_trains_as_without():
    """The logs and the weights are the same, bit for bit."""
    alone, model = compiled(), compiled()
    expected = fit(alone).history
    history = fit(model, callbacks.Distributed()).history
    assert history == expected
    for a, b in zip(alone.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(a, b)


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
