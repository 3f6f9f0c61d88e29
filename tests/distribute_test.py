"""Optimizers of Keras whose gradients are averaged over ranks."""

import itertools
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
import two_ranks

import tfkfac
from tfkfac.distributed import communicator

GRADIENTS = [np.array([6.0, 0.0]), np.array([0.0, 8.0])]


@pytest.fixture
def on_ranks(monkeypatch):
    """Runs a function on two ranks, of which `current` tells each its own."""
    own = {}

    def run(function):
        def of_rank(ranks):
            own[threading.get_ident()] = ranks
            return function(ranks.rank)

        return two_ranks.run(2, of_rank)

    def current():
        return own[threading.get_ident()]

    monkeypatch.setattr(communicator, "current", current)
    # Each process counts for itself.
    monkeypatch.setattr(communicator, "_numbers", itertools.repeat(0))
    return run


@pytest.mark.parametrize("norm", [None, 2.5])
def test_the_average_is_taken_before_the_clip(on_ranks, norm):
    """Of all variables; the mean is (3, 4), of norm 5."""

    def step(rank):
        w = keras.Variable([0.0, 0.0])
        unused = keras.Variable(1.0)
        optimizer = keras.optimizers.SGD(1.0, global_clipnorm=norm)
        optimizer.build([w, unused])
        for _ in range(2):  # The second time it changes nothing.
            assert tfkfac.distribute(optimizer) is optimizer
        gradient = tf.constant(GRADIENTS[rank], tf.float32)
        optimizer.apply([gradient, tf.constant(2.0)], [w, unused])
        return w.numpy(), float(unused)

    factor = 1 if norm is None else norm / np.sqrt(29)
    for w, other in on_ranks(step):
        np.testing.assert_allclose(w, [-3 * factor, -4 * factor], rtol=1e-6)
        assert other == pytest.approx(1 - 2 * factor, rel=1e-6)


def test_a_loss_scale_agrees_with_the_others(on_ranks):
    def step(rank):
        w = keras.Variable([1.0, 1.0])
        outer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(1.0), initial_scale=2.0
        )
        outer.build([w])
        tfkfac.distribute(outer)
        bad = np.nan if rank else 1.0
        outer.apply([tf.constant([bad, 1.0])], [w])
        skipped = w.numpy()
        outer.apply([tf.constant(GRADIENTS[rank], tf.float32)], [w])
        return skipped, w.numpy(), float(outer.dynamic_scale)

    for skipped, w, scale in on_ranks(step):
        np.testing.assert_array_equal(skipped, [1, 1])
        np.testing.assert_allclose(w, [1 - 3, 1 - 4])
        assert scale == 1.0


def test_one_process_and_what_is_no_optimizer():
    optimizer = keras.optimizers.SGD()
    before = set(vars(optimizer))
    assert tfkfac.distribute(optimizer) is optimizer
    assert set(vars(optimizer)) == before
    with pytest.raises(TypeError, match="'adam' is not a Keras optimizer"):
        tfkfac.distribute("adam")
