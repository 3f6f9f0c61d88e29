"""Callbacks that watch a `KFAC`: skipped steps, movement of the factors."""

import json

import keras
import numpy as np
import pytest

import tfkfac

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 4)).astype("float32")
Y = RNG.integers(0, 3, 48)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make(compile_settings=None, **settings):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, name="logits")]
    )
    optimizer = tfkfac.KFAC(0.01, model=model, **settings)
    model.compile(optimizer, LOSS, **(compile_settings or {}))
    return model


@pytest.mark.parametrize("decay", [0.0, 0.95])
def test_movement_of_the_factors(decay, tmp_path):
    """Osawa's eq. 19 of A = x x^T / N, of the mini-batches by hand."""
    model = make(factor_decay=decay, factor_update_period=2)
    movement = tfkfac.callbacks.FactorMovement(tmp_path / "moved.jsonl")
    model.fit(
        X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0,
        callbacks=[movement],
    )  # fmt: skip
    a = np.concatenate([X, np.ones([48, 1])], axis=1).reshape(6, 8, 5)
    A = [x.T @ x / 8 for x in a[[0, 2, 4, 0, 2, 4]].astype("float64")]
    expected = [
        np.linalg.norm(new - old) / np.linalg.norm(old)
        for old, new in zip(A, A[1:])
    ]
    found = [m["logits/input_factor"] for m in movement.movements]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert [m["update"] for m in movement.movements] == [2, 4, 6, 8, 10]
    lines = (tmp_path / "moved.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == movement.movements


def test_movement_over_micro_steps():
    model = make(factor_decay=0.5, gradient_accumulation_steps=2)
    movement = tfkfac.callbacks.FactorMovement()
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0,
              callbacks=[movement])  # fmt: skip
    a = np.concatenate([X, np.ones([48, 1])], axis=1).reshape(3, 16, 5)
    A = [x.T @ x / 16 for x in a.astype("float64")]
    expected = [
        np.linalg.norm(new - old) / np.linalg.norm(old)
        for old, new in zip(A, A[1:])
    ]
    found = [m["logits/input_factor"] for m in movement.movements]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_movement_needs_to_see_each_step():
    model = make()
    model.steps_per_execution = 2
    with pytest.raises(ValueError, match="steps_per_execution=1"):
        model.fit(X, Y, verbose=0,
                  callbacks=[tfkfac.callbacks.FactorMovement()])  # fmt: skip


def test_too_many_skipped_steps_end_a_run_under_xla():
    model = make({"jit_compile": True}, max_skipped_steps=2)
    bad = np.full((24, 4), np.nan, "float32")
    with pytest.raises(RuntimeError, match="max_skipped_steps=2 updates in a"):
        model.fit(
            bad,
            np.zeros(24),
            batch_size=4,
            verbose=0,
            callbacks=[tfkfac.callbacks.StopOnSkippedSteps()],
        )


@pytest.mark.parametrize(
    "callback",
    [tfkfac.callbacks.StopOnSkippedSteps, tfkfac.callbacks.FactorMovement],
)
def test_callbacks_of_kfac_refuse_another_optimizer(callback):
    model = make()
    model.compile(keras.optimizers.SGD(), "mse")
    with pytest.raises(TypeError, match="compiled with SGD: leave"):
        model.fit(X, np.zeros(len(X)), verbose=0, callbacks=[callback()])
