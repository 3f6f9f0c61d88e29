"""Any Keras optimizer with averaged gradients."""

import keras
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.distributed import (
    agreement,
    communicator,
    loss_scale,
    packing,
    sync,
)
from tfkfac.keras_compat import CLIPPING
from tfkfac.optimizer import KFAC


def distribute(
    optimizer: keras.optimizers.Optimizer,
) -> keras.optimizers.Optimizer:
    """Has an optimizer average its gradients over all ranks, and returns it.

    What `hvd.DistributedOptimizer` does no longer under Keras 3. The average is
    that of the ranks, whatever their numbers of examples, and is taken before
    Keras' clipping; with gradient accumulation, of the sums. All ranks begin
    with the weights and the optimizer state of rank 0: in `fit` by
    `tfkfac.callbacks.Distributed`, which sees to moving statistics too; in an
    own loop when the first step averages, so that in eager mode the first
    gradients are those of each rank's own weights. Within a window of
    micro-steps save by `tfkfac.callbacks.ModelCheckpoint`, which joins the sums
    of the ranks. A `KFAC` averages by itself; in a `LossScaleOptimizer` that no
    model is compiled with, for an own training loop, it needs this call for
    what follows.

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
    inner = loss_scale.unwrapped(optimizer)
    if ranks.size == 1:
        return optimizer
    names = communicator.Names()
    own = keras_compat.own_attribute
    if inner is not optimizer and own(optimizer, "check_finite") is None:
        loss_scale.agree_on_finiteness(optimizer, ranks, names)
    if not isinstance(inner, KFAC) and own(inner, CLIPPING) is None:
        _average_gradients(inner, ranks, names)
    return optimizer


def _average_gradients(optimizer, ranks, names):
    clip = getattr(optimizer, CLIPPING)
    is_shared = False

    def collective():
        return names.of("gradients")

    def average_and_clip(grads):
        nonlocal is_shared
        if not is_shared:
            with tf.init_scope():
                sync.share_trained(optimizer, ranks)
            is_shared = True
        dense = [tf.convert_to_tensor(g) for g in grads if g is not None]
        dtype = packing.widest(g.dtype for g in dense)
        steers = agreement.Agreement(
            {
                "iterations": tf.convert_to_tensor(optimizer.iterations),
                "learning_rate": tf.convert_to_tensor(optimizer.learning_rate),
            },
            ranks,
            names.of("numbers"),
        )
        own = packing.flatten([steers.digits(dtype), *dense], dtype)
        digits, total = tf.split(
            ranks.all_reduce(own, collective()), [agreement.LENGTH, -1]
        )
        with tf.control_dependencies([steers.require(digits)]):
            total = total / tf.cast(ranks.size, dtype)
        means = packing.unflatten(total, dense)
        means = iter(tf.cast(m, g.dtype) for m, g in zip(means, dense))
        return clip([g if g is None else next(means) for g in grads])

    # Which a step begins with.
    keras_compat.set_untracked(average_and_clip, collective=collective)
    keras_compat.set_untracked(optimizer, **{CLIPPING: average_and_clip})
