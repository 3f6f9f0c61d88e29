"""Inversions that fail: the last inverse stays, then the gradient goes."""

import numpy as np
import pytest
import tensorflow as tf
from recovery import LOSS, X, Y, all_finite, make

from tfkfac.blocks.factored import MAX_FAILURES


def damage(optimizer, name, value):
    variable = optimizer.curvature[name]
    matrix = variable.numpy()
    matrix[..., 0, 0] = value
    variable.assign(matrix)


@pytest.mark.parametrize("inverter", ["cholesky", "eigen"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e6])
def test_a_damaged_factor_recovers(inverter, value):
    """It keeps the last good inverse or starts anew, and is counted."""
    model, optimizer = make(inverter=inverter, factor_update_period=2)
    for _ in range(3):  # The next step inverts without a factor update.
        model.train_on_batch(X, Y)
    key = "hidden/input_factor"
    names = [n for n in optimizer.curvature.state() if key in n]
    good = {n: optimizer.curvature.state()[n] for n in names}
    damage(optimizer, f"{key}/moment", value)
    model.train_on_batch(X, Y)
    state = optimizer.curvature.state()
    for name in names:
        if "inverse" in name or "eigen" in name:
            np.testing.assert_array_equal(state[name], good[name], name)
    failures = optimizer.failed_inversions
    assert failures.pop("hidden") == 1 and set(failures.values()) == {0}
    assert state[f"{key}/weight"] == 0  # The average starts anew.
    model.train_on_batch(X, Y)
    assert optimizer.curvature.state()[f"{key}/weight"] > 0
    name = next(n for n in names if "inverse" in n or "vectors" in n)
    assert np.abs(optimizer.curvature.state()[name] - good[name]).max() > 0
    model.train_on_batch(X, Y)
    assert optimizer.failed_inversions["hidden"] == 1
    assert all_finite(model, optimizer)


@pytest.mark.parametrize("inverter", ["cholesky", "eigen"])
def test_plain_gradient_after_too_many_failures(inverter, capfd):
    """As long as the factor is damaged before every inversion."""
    model, optimizer = make(inverter=inverter, momentum=0.0, kl_clip=None)
    model.train_on_batch(X, Y)

    def damaged_step():
        damage(optimizer, "hidden/output_factor/moment", -1e6)
        optimizer.curvature["hidden/output_factor/weight"].assign(1.0)
        model.train_on_batch(X, Y)

    for _ in range(MAX_FAILURES + 2):
        damaged_step()
    kernel = model.get_layer("hidden").kernel
    with tf.GradientTape() as tape:
        loss = LOSS(Y, model(X))
    expected = kernel.numpy() - 0.05 * tape.gradient(loss, kernel.value)
    damaged_step()
    np.testing.assert_allclose(kernel.numpy(), expected, rtol=1e-5)
    assert capfd.readouterr().err.count("hidden: 5 inversions failed") == 1
    assert optimizer.failed_inversions["hidden"] == MAX_FAILURES + 3
    model.train_on_batch(X, Y)
    assert optimizer.failed_inversions["hidden"] == MAX_FAILURES + 3
    assert all_finite(model, optimizer)


@pytest.mark.parametrize("inverter", ["cholesky", "eigen"])
def test_a_damaged_diagonal_factor_recovers(inverter):
    model, optimizer = make(inverter=inverter, factor_update_period=2)
    for _ in range(3):
        model.train_on_batch(X, Y)
    moment = optimizer.curvature["norm/factor/moment"]
    moment.assign(-tf.ones_like(moment))
    model.train_on_batch(X, Y)
    assert optimizer.failed_inversions["norm"] == 1
    model.train_on_batch(X, Y)
    assert optimizer.failed_inversions["norm"] == 1
    assert (moment.numpy() >= 0).all()
