"""State saved and restored on two ranks, by eager steps.

horovodrun -np 2 python tests/distributed_ranks.py folder distributed_restores

Graphs of so many models would take minutes; `distributed_training` and
`trainers_program` restore where steps are graphs.
"""

import contextlib
import pathlib

import distributed_program as program
import keras
import numpy as np
from distributed_ranks import (
    LOSS,
    RANK,
    RANKS,
    X,
    Y,
    alone,
    dense,
    equal_on_all_ranks,
    kfac,
    raises,
    weights,
)

import tfkfac
from tfkfac import callbacks

EAGER = True


def check_memory_after_a_restore(folder):
    """Only the owner keeps what was loaded."""
    path = pathlib.Path(folder) / "memory.weights.h5"
    model = dense()
    model.compile(kfac(model), LOSS)
    model.train_on_batch(X, Y)
    model.optimizer.gather_curvature()
    if RANK == 0:
        model.save_weights(path)
    RANKS.gather_objects(None)
    model.load_weights(path)
    model.train_on_batch(X, Y)
    assert not model.optimizer.curvature.waiting()


def check_resumed_with_dropout(folder):
    """Bit for bit: seeds and a learning rate that still warms up."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def train(name, *more):
        model = dense()
        model.add(keras.layers.Dropout(0.5, seed=RANK))
        model.compile(kfac(model), LOSS)
        model.fit(
            X, Y, batch_size=4, epochs=4, shuffle=False, verbose=0,
            callbacks=[
                callbacks.Distributed(),
                callbacks.BackupAndRestore(pathlib.Path(folder) / name),
                callbacks.LearningRateWarmup(epochs=3),
                *more,
            ],
        )  # fmt: skip
        return model

    whole = train("whole")
    with contextlib.suppress(KeyboardInterrupt):
        train("resumed", Stop())
    resumed = train("resumed")
    np.testing.assert_array_equal(weights(whole), weights(resumed))
    assert abs(float(resumed.optimizer.learning_rate) - 0.05) < 1e-7


def check_windows_of_micro_steps_go_on(folder):
    """Sums of micro-steps differ by rank: over backups and calls of `fit` they
    come to those of one process on the joint batch."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def make(kind):
        model = dense()
        model.layers[1].trainable = False  # Without local statistics.
        for i, v in enumerate(model.trainable_variables):
            v.assign(np.random.default_rng(i).normal(size=v.shape))
        options = {"gradient_accumulation_steps": 2}
        if kind == "kfac":
            optimizer = kfac(model, **options)
        else:
            sgd = keras.optimizers.SGD(0.1, momentum=0.9, **options)
            optimizer = tfkfac.distribute(sgd)
        model.compile(optimizer, LOSS)
        return model

    def fit(model, x, y, *given, epochs=2):
        model.fit(
            x, y, batch_size=len(x) // 3, epochs=epochs, shuffle=False,
            verbose=0, callbacks=list(given),
        )  # fmt: skip

    x, y = X[:6], Y[:6]  # Three batches, each of one and a half windows.
    every = [np.split(v, 3) for v in (x, y)]
    every = RANKS.gather_objects(every)
    joint = [
        np.concatenate([of_rank[i][k] for k in range(3) for of_rank in every])
        for i in range(2)
    ]
    for kind in ("kfac", "sgd"):
        backup = pathlib.Path(folder) / f"window_{kind}"
        with alone():
            expected = make(kind)
        for _ in range(2):
            fit(expected, *joint, epochs=3)
        found = []
        for stops in (False, True):
            given = callbacks.Distributed(), callbacks.BackupAndRestore(backup)
            if stops:
                with contextlib.suppress(KeyboardInterrupt):
                    fit(make(kind), x, y, *given, Stop(), epochs=3)
            model = make(kind)
            fit(model, x, y, *given, epochs=3)
            fit(model, x, y, callbacks.Distributed(), epochs=3)
            found.append(weights(model))
        assert equal_on_all_ranks(found[0])
        np.testing.assert_array_equal(*found)
        np.testing.assert_allclose(
            found[0], weights(expected), rtol=1e-5, atol=1e-6
        )


def check_saves_in_mid_epoch(folder):
    """They hold the mean of the moving statistics."""
    path = pathlib.Path(folder) / "middle.weights.h5"
    model = dense()
    model.compile(kfac(model), LOSS)
    model.fit(
        X, Y, batch_size=4, verbose=0, steps_per_epoch=1,
        callbacks=[callbacks.Distributed(),
                   callbacks.ModelCheckpoint(path, save_freq=1,
                                             save_weights_only=True)],
    )  # fmt: skip
    mean = model.layers[1].moving_mean.numpy()
    assert equal_on_all_ranks(mean)
    restored = dense()
    restored.load_weights(path)
    np.testing.assert_array_equal(restored.layers[1].moving_mean, mean)


def check_restored_on_rank_0_alone(folder):
    """The other ranks get the weights and the curvature from it."""
    model = dense()
    model.compile(kfac(model), LOSS)
    for _ in range(3):
        model.train_on_batch(X, Y)
    model.optimizer.gather_curvature()
    path = pathlib.Path(folder) / "rank0.keras"
    if RANK == 0:
        model.save(path)
    RANKS.gather_objects(None)
    if RANK == 0:
        restored = keras.models.load_model(path)
        tfkfac.attach(restored)
    else:
        restored = dense()
        restored.compile(kfac(restored), LOSS)
    for m in (model, restored):
        for _ in range(2):
            m.train_on_batch(X, Y)
    np.testing.assert_array_equal(weights(model), weights(restored))


def check_every_kind_of_layer(folder):
    """Bit for bit, of layers whose blocks the first step finds, too.

    Without LoRA, which Keras adds to the kernel in what it saves.
    """

    def begin():
        return program.compiled(
            lambda: program.every_kind_model(lora=False), options, {}, 1
        )

    path = pathlib.Path(folder) / "every_kind.weights.h5"
    options = {"strategy": "replicated", "inverse_update_period": 2}
    batches = list(
        program.local_batches(program.TOKENS, program.CLASSES, 1, RANK, 2)
    )
    model = begin()
    for batch in batches[:3]:
        model.train_on_batch(*batch)
    model.optimizer.gather_curvature()
    if RANK == 0:
        model.save_weights(path)
    RANKS.gather_objects(None)
    resumed = begin()
    if RANK == 0:
        resumed.load_weights(path)
    for m in (model, resumed):
        for batch in batches[3:6]:
            m.train_on_batch(*batch)
    assert not resumed.optimizer.curvature.waiting()
    assert equal_on_all_ranks(weights(resumed))
    np.testing.assert_array_equal(weights(model), weights(resumed))


def check_moments_of_the_fallback(folder):
    """Adam's are those of the joint batch, and loaded on rank 0 alone."""
    path = pathlib.Path(folder) / "fallback.weights.h5"
    every = RANKS.gather_objects((X, Y))
    joint = [np.concatenate(values) for values in zip(*every)]

    def make(**options):
        model = dense()
        model.layers[1].trainable = False  # Without local statistics.
        for i, v in enumerate(model.trainable_variables):
            v.assign(np.random.default_rng(i).normal(size=v.shape))
        optimizer = kfac(model, skip=["logits"], global_clipnorm=0.1, **options)
        model.compile(optimizer, LOSS)
        return model

    with alone():
        expected = make()
    for strategy in ("owner", "replicated"):
        model = make(strategy=strategy)
        for _ in range(3):
            model.train_on_batch(X, Y)
        if strategy == "owner":
            for _ in range(3):
                expected.train_on_batch(*joint)
        assert equal_on_all_ranks(weights(model))
        np.testing.assert_allclose(
            weights(model), weights(expected), rtol=1e-4, atol=1e-6
        )
        model.optimizer.gather_curvature()
        if RANK == 0:
            model.save_weights(path)
        RANKS.gather_objects(None)
        resumed = make(strategy=strategy)
        if RANK == 0:
            resumed.load_weights(path)
        for m in (model, resumed):
            for _ in range(2):
                m.train_on_batch(X, Y)
        assert not resumed.optimizer.curvature.waiting()
        np.testing.assert_array_equal(weights(model), weights(resumed))


def check_state_of_one_rank_is_refused(folder):
    """Each has its own curvature: trees and copies would be without it."""
    a, b = dense(), dense()
    for model in (a, b):
        model.compile(kfac(model), LOSS)
    assert not any("/curvature/" in v.path for v in a.optimizer.variables)
    for _ in range(3):
        a.train_on_batch(X, Y)
    with raises(RuntimeError, "2 ranks", "gather_curvature"):
        a.get_state_tree()
    with raises(RuntimeError, "2 ranks", "load_weights"):
        b.set_state_tree({"optimizer_variables": {}})
    pairs = (
        (a.variables, b.variables),
        (
            a.optimizer.variables,
            b.optimizer.variables,
        ),
    )
    for of_kind in pairs:
        for source, target in zip(*of_kind, strict=True):
            target.assign(source)
    with raises(RuntimeError, "3 updates", "without its curvature"):
        b.train_on_batch(X, Y)


def check_restored_under_other_names(folder):
    """Also by a rank that has no share in what it saves or loads."""
    path = pathlib.Path(folder) / "names.weights.h5"

    def nested():
        keras.utils.set_random_seed(RANK)
        body = keras.Sequential(
            [keras.layers.Dense(5, "tanh"), keras.layers.Dense(4)]
        )
        model = keras.Sequential(
            [keras.Input((6,)), body, keras.layers.Dense(3)]
        )
        model.compile(kfac(model), LOSS)
        return model

    a, b = nested(), nested()
    assert a.layers[0].name != b.layers[0].name
    for _ in range(3):
        a.train_on_batch(X, Y)
    a.optimizer.gather_curvature()
    if RANK == 0:
        a.save_weights(path)
    RANKS.gather_objects(None)
    b.load_weights(path)
    for model in (a, b):
        for _ in range(3):
            model.train_on_batch(X, Y)
    assert not b.optimizer.curvature.waiting()
    np.testing.assert_array_equal(weights(a), weights(b))
