"""Loss and accuracy of a model on a split, over all ranks."""

import contextlib
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf


class Evaluation:
    """Evaluates a model; what is compiled once serves every time.

    The loss is the cross-entropy in nats, without label smoothing and
    regularizers, and like the accuracy a mean over the examples (or tokens),
    each of which counts by its weight, on whatever rank it is.

    Args:
        model: From inputs to logits.
        ranks: A `tfkfac.distributed.communicator.Communicator`.
        interrupted: Tells whether to stop; asked after every batch.
    """

    def __init__(
        self,
        model: keras.Model,
        ranks,
        interrupted: Callable[[], bool] = lambda: False,
    ):
        self._ranks, self._interrupted = ranks, interrupted

        @tf.function(reduce_retracing=True)
        def sums(x, y, weights):
            logits = tf.cast(model(x, training=False), tf.float32)
            if y.shape.rank == logits.shape.rank:  # One-hot.
                y = tf.argmax(y, axis=-1)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
            right = tf.equal(tf.argmax(logits, -1), tf.cast(y, tf.int64))
            right = tf.cast(right, tf.float32)
            terms = [weights * losses, weights * right, weights]
            return tf.stack([tf.reduce_sum(t) for t in terms])

        self._sums = sums

    def __call__(self, batches: tf.data.Dataset) -> dict[str, float] | None:
        """Returns "loss" and "accuracy".

        None where a rank was interrupted.

        Args:
            batches: This rank's share, of inputs, targets and weights.
        """
        total = np.zeros(3)
        for batch in batches:
            total += self._sums(*batch).numpy()
            if self._interrupted():
                break
        found = self._ranks.gather_objects((total, self._interrupted()))
        if any(interrupted for _, interrupted in found):
            return None
        loss, right, count = sum(of_rank for of_rank, _ in found)
        return {"loss": float(loss / count), "accuracy": float(right / count)}


def build_metrics(model: keras.Model) -> None:
    """Makes the variables of the metrics, for checkpoints to hold them."""
    shape = [1 if side is None else side for side in model.output_shape]
    one_hot = isinstance(model.loss, keras.losses.CategoricalCrossentropy)
    y = np.zeros(shape if one_hot else shape[:-1], "float32")
    model.compute_metrics(None, y, np.zeros(shape, "float32"), None)
    model.reset_metrics()


def of_training(model: keras.Model, ranks) -> dict[str, float]:
    """Returns the metrics of the part that is trained, over all ranks.

    Args:
        model: The compiled model.
        ranks: A `tfkfac.distributed.communicator.Communicator`.
    """
    loss, compiled = model.metrics
    own = {
        metric.name: np.array([metric.total, metric.count], "float64")
        for metric in (loss, *compiled.metrics)
    }
    every = ranks.gather_objects(own)
    sums = {name: sum(found[name] for found in every) for name in own}
    return {name: float(total / n) for name, (total, n) in sums.items()}


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Within it the model has the moving averages of its weights, if any."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema:
        yield
        return
    own = [v.numpy() for v in model.trainable_variables]
    optimizer._overwrite_model_variables_with_average_value(
        model.trainable_variables
    )
    try:
        yield
    finally:
        for variable, value in zip(model.trainable_variables, own):
            variable.assign(value)
