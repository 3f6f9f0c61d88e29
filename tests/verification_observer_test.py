"""What is seen of a step: uses, V and U of each optimizer."""

import contextlib

import classifier
import numpy as np
import programs
import programs_gan_test
import pytest
import tensorflow as tf
import verified

import tfkfac
from tfkfac.attached_model import attached_to

X, Y = classifier.X, classifier.Y


def test_both_optimizers_of_a_gan():
    def make(model):
        return tfkfac.KFAC(0.05, damping=0.1, model=model)

    gan = programs_gan_test.GAN(separately=True)
    optimizers = map(make, (gan.discriminator, gan.generator))
    gan.compile(*optimizers, programs_gan_test.CROSS_ENTROPY)
    check = verified.verification(gan)
    updates = check.updates_of(programs_gan_test.REAL)
    names = [a.model.name for a in attached_to(gan)]
    assert names == ["discriminator", "generator"]
    uses = [len(u.uses_of(u.blocks[0])) for u in updates.values()]
    assert uses == [2, 1]  # Of the real ones and the others.
    assert [u.count for u in updates.values()] == [
        2 * programs.BATCH,
        programs.BATCH,
    ]


def test_windows_of_accumulated_gradients():
    """One that began before is left out."""
    model, optimizer = classifier.compiled(
        gradient_accumulation_steps=2,
        compile_settings={"run_eagerly": True},
    )
    model.train_on_batch(X, Y)
    report = tfkfac.verify(model, X, Y)
    assert report.ok, str(report)
    assert int(optimizer.micro_step) == 1
    (update,) = verified.verification(model).updates_of((X, Y)).values()
    assert len(update.parts) == 2 and update.count == 2 * len(X)


def test_factors_are_those_of_the_step_alone():
    """M / c of a trained optimizer, with nothing of the steps before."""
    model, _ = classifier.compiled(fisher="empirical")
    model.fit(X, Y, epochs=3, verbose=0)
    (update,) = verified.verification(model).updates_of((X, Y)).values()
    a = np.concatenate([X, np.ones([len(X), 1])], axis=1)
    A, _ = update.factors[update.blocks[0]]
    np.testing.assert_allclose(A[0], a.T @ a / len(X), rtol=1e-5)


def test_a_step_that_no_eager_check_sees():
    model, _ = classifier.compiled()
    model.train_step = tf.function(model.train_step)
    check = verified.verification(model)
    check._eagerly = contextlib.nullcontext  # As on several ranks.
    with pytest.raises(ValueError, match="in a tf.function: give .* step="):
        check.updates_of((X, Y))
