"""Checks on two ranks of what they train, skip and refuse.

horovodrun -np 2 python tests/distributed_ranks.py folder distributed_checks
"""

import contextlib
import io
import pathlib

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf
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


def check_stock_horovod_leaves_ranks_different(folder):
    """And `distribute` leaves them equal, to the mean of the gradients.

    Whatever weights a rank begins with, and what else it has distributed.
    """
    results = []
    for wrap in (hvd.DistributedOptimizer, tfkfac.distribute):
        model = dense()
        keras.utils.set_random_seed(0)
        for i, v in enumerate(model.trainable_variables):
            v.assign(np.random.default_rng(i).normal(size=v.shape))
        before = weights(model)
        with tf.GradientTape() as tape:
            loss = LOSS(Y, model(X, training=True))
        V = tape.gradient(loss, [v.value for v in model.trainable_variables])
        V = np.concatenate([g.numpy().ravel() for g in V])
        if RANK and wrap is tfkfac.distribute:
            wrap(keras.optimizers.SGD())
            model.trainable_variables[0].assign_add(
                np.ones(model.trainable_variables[0].shape)
            )
        model.compile(wrap(keras.optimizers.SGD(0.1)), LOSS)
        model.train_on_batch(X, Y)
        results.append(weights(model) - before)
    mean = np.mean(RANKS.gather_objects(V), axis=0)
    assert not equal_on_all_ranks(results[0])
    assert equal_on_all_ranks(results[1])
    np.testing.assert_allclose(results[1], -0.1 * mean, atol=1e-6)


def check_distributed_optimizers(folder):
    """With clipping, accumulation and loss scaling."""
    policy = keras.config.dtype_policy()
    for steps, half in ((None, False), (2, False), (None, True)):
        if half:
            keras.config.set_dtype_policy("mixed_float16")
        optimizer = keras.optimizers.Adam(
            0.01, global_clipnorm=0.5, gradient_accumulation_steps=steps
        )
        if half:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model = dense()
        model.compile(tfkfac.distribute(optimizer), LOSS)
        model.fit(
            X, Y, batch_size=4, epochs=2, verbose=0,
            callbacks=[callbacks.Distributed()],
        )  # fmt: skip
        if half:  # Overflow on one rank.
            before = weights(model)
            model.train_on_batch(X * (np.inf if RANK else 1), Y)
            np.testing.assert_array_equal(weights(model), before)
        assert equal_on_all_ranks(weights(model))
        keras.config.set_dtype_policy(policy)


def check_nan_on_one_rank_is_skipped_by_all(folder):
    for steps in (None, 2):
        model = dense()
        optimizer = kfac(model, gradient_accumulation_steps=steps)
        model.compile(optimizer, LOSS)
        bad = X * np.nan if RANK == 1 else X
        for x in (X, X, bad, X, X, X):
            model.train_on_batch(x, Y)
        assert int(optimizer.skipped_steps) == 1
        assert np.isfinite(np.concatenate(
            [v.numpy().ravel() for v in model.variables]
        )).all()  # fmt: skip
        assert equal_on_all_ranks(weights(model))


def check_loss_scale(folder):
    """What is not finite on one rank: all skip, and scales stay equal."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    model = dense()
    optimizer = kfac(model, fisher="empirical")
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer), LOSS)
    for x in (X, X * (np.nan if RANK else 1), X, X):
        model.train_on_batch(x, Y)
    scale = float(model.optimizer.dynamic_scale.numpy())
    assert scale < model.optimizer.initial_scale
    assert equal_on_all_ranks(scale)
    assert equal_on_all_ranks(weights(model))
    keras.config.set_dtype_policy(policy)


def check_bfloat16(folder):
    """Horovod does not know the type."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("bfloat16")
    for make in (kfac, lambda _: tfkfac.distribute(keras.optimizers.SGD(0.1))):
        model = dense()
        model.compile(make(model), LOSS)
        model.fit(X, Y, batch_size=4, verbose=0,
                  callbacks=[callbacks.Distributed()])  # fmt: skip
        assert model.trainable_weights[0].dtype == "bfloat16"
        assert equal_on_all_ranks(weights(model).astype("float32"))
        statistics = np.concatenate(model.layers[1].get_weights())
        assert equal_on_all_ranks(statistics.astype("float32"))
    keras.config.set_dtype_policy(policy)


def check_sum_reduction(folder):
    """Gradients are added; the regularizer counts once."""
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="sum"
    )
    every = RANKS.gather_objects((X, Y))
    joint = [np.concatenate(values) for values in zip(*every)]
    found = []
    for x, y in ((X, Y), joint):
        keras.utils.clear_session(free_memory=False)
        model = keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(3, kernel_regularizer="l2", name="logits"),
            ]
        )
        for i, v in enumerate(model.trainable_variables):
            v.assign(np.random.default_rng(i).normal(size=v.shape))
        if x is X:
            model.compile(kfac(model, kl_clip=None, fisher="empirical"), loss)
        else:
            with alone():
                optimizer = kfac(model, kl_clip=None, fisher="empirical")
            model.compile(optimizer, loss, run_eagerly=True)
        for _ in range(3):
            model.train_on_batch(x, y)
        found.append(weights(model))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)


def check_different_models(folder):
    model = dense(units=5 + RANK)
    model.compile(kfac(model), LOSS)
    with raises(RuntimeError, "Rank 1", "hidden/kernel"):
        model.train_on_batch(X, Y)
    model = dense()
    model.compile(kfac(model, seed=RANK), LOSS)
    with raises(RuntimeError, "Rank 1", "seed: 1 against 0"):
        model.train_on_batch(X, Y)


def check_different_settings(folder):
    """Of what no variable tells."""
    for option in (
        {"weight_decay": 0.1 * (1 + RANK)},
        {"inverse_update_period": 2 + RANK},
        {"inverter": tfkfac.CholeskyInverter(pi=1.0 + RANK)},
    ):
        model = dense()
        model.compile(kfac(model, **option), LOSS)
        with raises(RuntimeError, "Rank 1", next(iter(option))):
            model.train_on_batch(X, Y)
    model = dense(kernel_regularizer="l2" if RANK else None)
    model.layers[0].activation = keras.activations.get(
        "relu" if RANK else "tanh"
    )
    model.compile(kfac(model), LOSS)
    with raises(RuntimeError, "Rank 1", "activation: relu against tanh"):
        model.train_on_batch(X, Y)


def check_layers_frozen_in_mid_training(folder):
    """Blocks get other owners, and the curvature goes with them."""
    every = RANKS.gather_objects((X, Y))
    joint = [np.concatenate(values) for values in zip(*every)]
    for strategy, eager in (("owner", False), ("replicated", True)):
        found = []
        for x, y in ((X, Y), joint):
            model = dense()
            model.layers[1].trainable = False  # Without local statistics.
            for i, v in enumerate(model.trainable_variables):
                v.assign(np.random.default_rng(i).normal(size=v.shape))
            with contextlib.nullcontext() if x is X else alone():
                optimizer = kfac(model, strategy=strategy, kl_clip=None)
            eager = eager or x is not X  # Graphs of one process take longer.
            model.compile(optimizer, LOSS, run_eagerly=eager)
            for step in range(9):
                if step in (3, 6):
                    model.layers[0].trainable = step == 6
                    model.compile(optimizer, LOSS, run_eagerly=eager)
                model.train_on_batch(x, y)
            found.append(weights(model))
        assert equal_on_all_ranks(found[0])
        np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


def check_models_without_a_block(folder):
    """Adam alone, in micro-steps too; as of one process on the joint batch."""
    every = RANKS.gather_objects((X, Y))
    joint = [np.concatenate(values) for values in zip(*every)]
    for steps in (None, 2):
        found = []
        for x, y in ((X, Y), joint):
            model = dense()
            model.layers[1].trainable = False  # Without local statistics.
            for i, v in enumerate(model.trainable_variables):
                v.assign(np.random.default_rng(i).normal(size=v.shape))
            with contextlib.nullcontext() if x is X else alone():
                optimizer = kfac(
                    model,
                    skip=["hidden", "logits"],
                    gradient_accumulation_steps=steps,
                )
            model.compile(optimizer, LOSS, run_eagerly=x is not X)
            for _ in range(4):
                model.train_on_batch(x, y)
            found.append(weights(model))
        assert equal_on_all_ranks(found[0])
        np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


def check_loss_scale_in_an_own_loop(folder):
    """Refused, but for what `distribute` has seen."""
    for seen in (False, True):
        model = dense()
        optimizer = keras.optimizers.LossScaleOptimizer(
            kfac(model, likelihood=tfkfac.Categorical())
        )
        if seen:
            optimizer = tfkfac.distribute(optimizer)

        @tf.function
        def step(x, model=model, optimizer=optimizer):
            with tf.GradientTape() as tape:
                loss = optimizer.scale_loss(LOSS(Y, model(x, training=True)))
            values = [v.value for v in model.trainable_variables]
            gradients = tape.gradient(loss, values)
            optimizer.apply(gradients, model.trainable_variables)

        if not seen:
            with raises(RuntimeError, "tfkfac.distribute(optimizer)"):
                step(X)
            continue
        for x in (X, X * (np.inf if RANK else 1), X):
            step(x)
        assert equal_on_all_ranks(float(optimizer.dynamic_scale.numpy()))
        assert equal_on_all_ranks(weights(model))
        assert np.isfinite(weights(model)).all()


def check_sums_that_overflow_are_skipped(folder):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    optimizer = kfac(model)
    model.compile(optimizer, "mse")
    y = np.full([8, 1], 1e37 if RANK else 1, "float32")
    model.train_on_batch(np.tile(X, [8, 1]), np.tile(y, [8, 1]))
    assert int(optimizer.skipped_steps) == 1
    assert np.isfinite(weights(model)).all()


def check_different_numbers_of_batches(folder):
    model = dense()
    model.compile(kfac(model), LOSS)
    with raises(RuntimeError, "Rank 1: at the beg", "1 batches in each"):
        model.fit(
            X, Y, batch_size=4 * (1 + RANK), verbose=0,
            callbacks=[callbacks.Distributed()],
        )  # fmt: skip


def check_refusals(folder):
    model = dense()
    with raises(ValueError, "strategy=3", "divide"):
        kfac(model, strategy=3)
    model = dense()
    with raises(ValueError, "communication_dtype='bfloat16'"):
        kfac(model, communication_dtype="bfloat16")
    model = dense()
    model.compile(kfac(model), LOSS, jit_compile=True)
    with raises(ValueError, "jit_compile=True", "XLA"):
        model.fit(X, Y, verbose=0)


def check_fit(folder):
    """Metrics, statistics, progress and files are those of one run."""
    model = dense()
    model.compile(kfac(model), LOSS)
    path = pathlib.Path(folder) / "best.keras"
    seen = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(dict(logs))
    )
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        model.fit(
            X, Y, batch_size=4, epochs=2, validation_data=(X, Y),
            callbacks=[
                callbacks.Distributed(),
                callbacks.LearningRateWarmup(epochs=1),
                callbacks.ModelCheckpoint(path, monitor="val_loss"),
                record,
            ],
        )  # fmt: skip
    assert ("Epoch" in printed.getvalue()) == (RANK == 0)
    assert equal_on_all_ranks(seen) and "val_loss" in seen[1]
    state = [v.numpy() for v in model.non_trainable_variables[:2]]
    assert equal_on_all_ranks(np.concatenate(state))
    assert [p.name for p in pathlib.Path(folder).glob("*best*")] == [path.name]
    assert abs(float(model.optimizer.learning_rate) - 0.05) < 1e-6
    if RANK == 0:
        restored = keras.models.load_model(path)
        np.testing.assert_array_equal(weights(restored), weights(model))
        saved = restored.optimizer.curvature.state()
        assert "hidden/input_factor/moment" in saved
        assert "logits/output_factor/inverse" in saved
    RANKS.gather_objects(None)
    model.train_on_batch(X, Y)
    for save, suffix in (
        (model.save, "keras"), (model.save_weights, "weights.h5"),
    ):  # fmt: skip
        refused = pathlib.Path(folder) / f"{RANK}.{suffix}"
        refused.write_text("old")
        with raises(RuntimeError, "gather_curvature"):
            save(refused)
        assert refused.read_text() == "old"
