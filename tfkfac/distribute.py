"""Any Keras optimizer with averaged gradients."""

import itertools

import keras
import tensorflow as tf

from tfkfac import communicator
from tfkfac.optimizer import KFAC

_names = itertools.count()


def distribute(
    optimizer: keras.optimizers.Optimizer,
) -> keras.optimizers.Optimizer:
    """Has an optimizer average its gradients over all ranks, and returns it.

    What `hvd.DistributedOptimizer` does no longer under Keras 3. The average is
    taken before Keras' clipping; with gradient accumulation, of the sums.
    `tfkfac.callbacks.Distributed` starts all ranks alike. A `KFAC` is returned
    as it is.

    A step that a `LossScaleOptimizer` skips on one rank is skipped on all:
    under mixed_float16 wrap the optimizer in one first, as `compile` would do
    out of sight. XLA cannot compile the collectives: compile the model with
    jit_compile=False where there are GPUs. Saved models hold the optimizer as
    it was; apply this again to a restored one.

    Raises:
        TypeError: It is no Keras optimizer.
        RuntimeError: There are several processes, and `tfkfac.init` was not
            called.
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            f"tfkfac.distribute: {optimizer!r} is not a Keras optimizer."
        )
    ranks = communicator.current()
    inner = optimizer
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        inner = optimizer.inner_optimizer
    if isinstance(inner, KFAC) or ranks.size == 1:
        return optimizer
    if inner is not optimizer:
        _agree_on_finiteness(optimizer, ranks)
    _average_gradients(inner, ranks)
    return optimizer


def _average_gradients(optimizer, ranks):
    name = "_clip_gradients"  # The last that all gradients pass together.
    if name in optimizer.__dict__:
        return
    clip = getattr(optimizer, name)
    collective = f"{optimizer.name}.{next(_names)}.gradients"

    def average_and_clip(grads):
        present = [g for g in grads if g is not None]
        dense = [tf.convert_to_tensor(g) for g in present]
        sizes = [g.shape.num_elements() for g in dense]
        dtype = tf.float64 if tf.float64 in {g.dtype for g in dense} else (
            tf.float32
        )  # fmt: skip
        flat = [tf.reshape(tf.cast(g, dtype), [-1]) for g in dense]
        mean = ranks.all_reduce(tf.concat(flat, axis=0), collective) / tf.cast(
            ranks.size, dtype
        )
        means = iter(
            tf.cast(tf.reshape(part, g.shape), g.dtype)
            for part, g in zip(tf.split(mean, sizes), dense)
        )
        return clip([g if g is None else next(means) for g in grads])

    optimizer.__dict__[name] = average_and_clip


def _agree_on_finiteness(optimizer, ranks):
    name = "check_finite"
    if name in optimizer.__dict__:
        return
    check = optimizer.check_finite

    def check_on_all_ranks(grads):
        failed = tf.cast(tf.logical_not(check(grads)), tf.float32)
        failed = ranks.all_reduce(failed[tf.newaxis], "loss_scale")
        return tf.equal(failed[0], 0)

    optimizer.__dict__[name] = check_on_all_ranks
