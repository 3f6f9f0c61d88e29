"""One call of `apply`: steps that are skipped, and too many in a row."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from classifier import X, Y, compiled

from tfkfac import step


def with_batch_norm():
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, name="hidden"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(3, name="logits", kernel_constraint="max_norm"),
        ]
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("eager", [False, True])
def test_a_bad_batch_changes_nothing_but_the_counters(bad, eager):
    """The run goes on as if the bad batch had never been."""
    poisoned = X.copy()
    poisoned[3, 1] = bad
    results = []
    for batches in ([X, X, X], [poisoned, X, X, poisoned, X]):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        model, optimizer = compiled(
            with_batch_norm(),
            compile_settings={"run_eagerly": eager},
            factor_update_period=2,
            inverse_update_period=2,
            use_ema=True,
        )
        for batch in batches:
            before = [v.numpy() for v in model.variables]
            model.train_on_batch(batch, Y)
            if batch is poisoned:
                after = [v.numpy() for v in model.variables]
                for a, b in zip(after, before):
                    np.testing.assert_array_equal(a, b)
        results.append([v.numpy() for v in model.variables])
        results[-1] += [v.numpy() for v in optimizer.momenta]
        results[-1] += optimizer._model_variables_moving_average
    assert int(optimizer.skipped_steps) == 2
    assert int(optimizer.iterations) == 5 and int(optimizer.updates) == 3
    for a, b in zip(*results):
        np.testing.assert_array_equal(a, b)


HOW = [{"run_eagerly": True}, {}, {"steps_per_execution": 2}]


@pytest.mark.parametrize("how", HOW, ids=["eager", "graph", "several"])
def test_too_many_skipped_steps_in_a_row_end_the_run(how):
    """By a sentence, without a trace of the graph; and it can go on."""
    model, optimizer = compiled(max_skipped_steps=2, compile_settings=how)
    bad = np.full_like(X, np.nan)
    for batch in (bad, bad, X, bad, bad):
        model.train_on_batch(batch, Y)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        model.fit(bad, Y, batch_size=len(Y), verbose=0)
    assert str(caught.value) == step.too_many_skipped(2)
    t = int(optimizer.updates)
    assert t == 1 == int(optimizer.curvature.updates.value)
    model.fit(X, Y, batch_size=len(Y), verbose=0)
    assert int(optimizer.updates) == 2
