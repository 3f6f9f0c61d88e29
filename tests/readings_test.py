"""What watched steps note: counts, the clip, shares, inversions."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from classifier import LOSS, X, Y, compiled, flat

from tfkfac import readings


def watched(**settings):
    keras.utils.set_random_seed(1)
    model, optimizer = compiled(**settings)
    optimizer.require_attached().is_watched = True
    return model, optimizer


def of(optimizer):
    return optimizer.require_attached().layers.estimator.readings


def test_counts_of_updates_and_of_what_was_due():
    poisoned = X.copy()
    poisoned[0] = np.nan
    settings = dict(factor_update_period=2, inverse_update_period=4)
    model, optimizer = watched(kl_clip=1e-8, **settings)
    keras.utils.set_random_seed(1)
    other, unwatched = compiled(kl_clip=1e-8, **settings)
    for batch in (X, X, poisoned, X, X, X, X):
        model.train_on_batch(batch, Y)
        other.train_on_batch(batch, Y)
    np.testing.assert_array_equal(flat(model), flat(other))
    assert of(unwatched) is None
    found = of(optimizer)
    # Factors at t = 0, 2 and 4, inverses at 0 and 4; t = 5 was the last.
    expected = {
        "updates": 6,
        "skipped": 1,
        "clipped": 6,
        "factors": 3,
        "inversions": 2,
    }
    counts = dict(zip(readings.COUNTS, found.read_counts().tolist()))
    assert counts == expected
    assert [found.age(b) for b in found.blocks] == [1, 1]
    assert [float(found.rows[b]) for b in found.blocks] == [16, 16]


def test_shares_and_the_coefficient_of_the_clip():
    """By hand, from what the first update of a clipped run does."""
    options = dict(momentum=0.0, learning_rate=1.0)
    options["compile_settings"] = {"run_eagerly": True}
    free, _ = watched(kl_clip=None, **options)
    model, optimizer = watched(kl_clip=1e-4, **options)
    before = [v.numpy() for v in free.trainable_variables]
    with tf.GradientTape() as tape:
        loss = LOSS(Y, free(X))
    V = [g.numpy() for g in tape.gradient(loss, free.trainable_variables)]
    free.train_on_batch(X, Y)
    model.train_on_batch(X, Y)
    U = [b - v.numpy() for b, v in zip(before, free.trainable_variables)]
    moved = flat(model) - np.concatenate([b.ravel() for b in before])
    nu = np.linalg.norm(moved) / np.linalg.norm([*map(np.linalg.norm, U)])
    assert float(of(optimizer).clip) == pytest.approx(nu, rel=1e-4)
    dots = [np.vdot(u, v) for u, v in zip(U, V)]
    shares = np.array([sum(dots[:2]), sum(dots[2:])]) / sum(dots)
    np.testing.assert_allclose(of(optimizer).shares, shares, rtol=1e-4)
    of(optimizer).begin_sums()
    assert float(of(optimizer).clip) == 0 and not of(optimizer).shares[0]
    assert of(optimizer).read_counts()[0] == 1


def test_an_inversion_that_fails_leaves_what_was_noted():
    model, optimizer = watched(
        compile_settings={"run_eagerly": True},
        inverse_update_period=1,
        factor_update_period=1,
    )
    model.train_on_batch(X, Y)
    found = of(optimizer)
    block = found.blocks[0]
    sketch = found.sketches[block][0].numpy()
    block.factors[0].moment.assign(-1e9 * block.factors[0].moment)
    model.train_on_batch(X, Y)
    np.testing.assert_array_equal(found.sketches[block][0], sketch)
    assert [found.age(b) for b in found.blocks] == [1, 0]


def test_a_sketch_has_the_norm_in_the_mean():
    rng = np.random.default_rng(0)
    for F in (rng.normal(size=(3, 80, 80)), np.ones([1, 70, 70])):
        norm = np.linalg.norm(readings.sketch(F))
        assert norm == pytest.approx(np.linalg.norm(F), rel=0.25)
        np.testing.assert_allclose(
            readings._sketch(tf.constant(F)), readings.sketch(F), rtol=1e-6,
            atol=1e-6,
        )  # fmt: skip
    for F in (np.ones([1, 64, 64]), np.ones([2, 500])):
        np.testing.assert_array_equal(readings.sketch(F), F)
