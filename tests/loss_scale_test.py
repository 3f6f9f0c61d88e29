"""Keras' `LossScaleOptimizer`: what all ranks skip, and what is undone."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import two_ranks

from tfkfac.distributed import loss_scale
from tfkfac.distributed.communicator import Names


def scaling(initial_scale=4.0):
    inner = keras.optimizers.SGD(1.0)
    return keras.optimizers.LossScaleOptimizer(
        inner, initial_scale=initial_scale, dynamic_growth_steps=100
    )


def test_the_optimizer_within():
    outer = scaling()
    assert loss_scale.unwrapped(outer) is outer.inner_optimizer
    assert loss_scale.unwrapped(outer.inner_optimizer) is outer.inner_optimizer
    assert loss_scale.unwrapped(None) is None


def test_what_one_rank_skips_all_skip():
    outers, names = [scaling() for _ in range(3)], Names()
    with pytest.raises(RuntimeError, match="alone.*tfkfac.distribute"):
        loss_scale.require_agreement(outers[0])

    def of_rank(ranks):
        outer = outers[ranks.rank]
        loss_scale.agree_on_finiteness(outer, ranks, names)
        loss_scale.require_agreement(outer)
        bad = np.inf if ranks.rank == 2 else 1.0
        found = [outer.check_finite([tf.constant([x])]) for x in (1.0, bad)]
        return [bool(x) for x in found]

    assert two_ranks.run(3, of_rank) == [[True, False]] * 3


def test_a_skipped_step_is_undone_and_the_scale_has_a_floor():
    outer, undone = scaling(4.0), []
    w = keras.Variable([1.0])
    outer.build([w])
    loss_scale.call_when_skipped(outer, lambda: undone.append(float(w[0])))
    scales = []
    for gradient in (np.nan, 8.0, np.inf, np.nan):
        outer.apply([tf.constant([gradient])], [w])
        scales.append(float(outer.dynamic_scale))
    assert undone == [1.0, -3.0, -3.0]  # Not the second, by 8 / 2.
    assert scales == [2.0, 2.0, 1.0, 1.0]
