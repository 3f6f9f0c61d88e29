"""Keras' `LossScaleOptimizer`, which wraps an optimizer in mixed precision."""

from collections.abc import Callable

import keras
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.distributed.communicator import Communicator, Names


def unwrapped(optimizer):
    """Returns the optimizer within a `LossScaleOptimizer`, or itself."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


def require_agreement(outer: keras.optimizers.LossScaleOptimizer) -> None:
    """Raises RuntimeError where a loss scale decides alone on this rank."""
    if keras_compat.own_attribute(outer, "check_finite") is None:
        raise RuntimeError(
            "This LossScaleOptimizer skips steps on each rank alone: compile "
            "the model with it, or pass it through tfkfac.distribute(optimizer)"
            " before the first step."
        )


def agree_on_finiteness(
    optimizer: keras.optimizers.LossScaleOptimizer,
    ranks: Communicator,
    names: Names,
) -> None:
    """Has all ranks skip what one of them would skip.

    Args:
        optimizer: It decides alone otherwise.
        ranks: The ranks.
        names: Of the collectives.
    """
    check = optimizer.check_finite

    def collective():
        return names.of("loss_scale")

    def check_on_all_ranks(grads):
        failed = tf.cast(tf.logical_not(check(grads)), tf.float32)
        return tf.equal(
            ranks.all_reduce(failed[tf.newaxis], collective())[0], 0
        )

    # Which a step begins with.
    keras_compat.set_untracked(check_on_all_ranks, collective=collective)
    keras_compat.set_untracked(optimizer, check_finite=check_on_all_ranks)


def call_when_skipped(
    optimizer: keras.optimizers.LossScaleOptimizer, undo: Callable[[], None]
) -> None:
    """Has `undo` called in the steps that the optimizer skips.

    The scale stays at 1 or more: batches with NaN, which no scale mends, would
    take it down until all gradients vanish.
    """

    def keep_scale_and_undo():
        scale = optimizer.dynamic_scale
        scale.assign(tf.maximum(scale.value, 1.0))
        undo()

    keras_compat.call_after_skipping(optimizer, keep_scale_and_undo)
