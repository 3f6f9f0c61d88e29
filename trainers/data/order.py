"""Which examples are in which batch, as functions of the seed and the step.

The examples of all epochs make one stream: epoch after epoch, each in an order
of its own. Global batch s is the s-th run of `batch_size` examples of it, so
that the last batch of an epoch is filled from the next one; rank r of R takes
the r-th of R equal parts of each batch.
"""

import dataclasses

import tensorflow as tf

# What random numbers are for: numbers of one purpose say nothing about others.
ORDER, AUGMENTATION, ERASING, MIXUP = range(4)


@dataclasses.dataclass(frozen=True)
class Part:
    """A rank's part of global batches.

    Attributes:
        batch_size: Examples in a global batch.
        rank: Whose part it is.
        ranks: In how many parts a batch comes.

    Raises:
        ValueError: The ranks do not divide the batch, or rank is none of them.
    """

    batch_size: int
    rank: int = 0
    ranks: int = 1

    def __post_init__(self):
        if not 0 <= self.rank < self.ranks:
            raise ValueError(
                f"rank={self.rank}: must be from 0 to {self.ranks - 1}"
            )
        if self.batch_size < 1 or self.batch_size % self.ranks:
            raise ValueError(
                f"batch_size={self.batch_size}: must be a multiple of "
                f"{self.ranks}, the number of ranks"
            )

    @property
    def size(self) -> int:
        """Examples in the part."""
        return self.batch_size // self.ranks

    def of(self, batch: tf.Tensor) -> tf.Tensor:
        """Returns the part's rows of a tensor [batch_size, ...]."""
        rows = batch[self.rank * self.size : (self.rank + 1) * self.size]
        return tf.ensure_shape(rows, [self.size, *batch.shape[1:]])


def key(seed: int, purpose: int, index: tf.Tensor | int) -> tf.Tensor:
    """Returns the seed of a stateless generator for one step or epoch, [2]."""
    return tf.random.experimental.stateless_fold_in(
        tf.constant([seed, purpose], tf.int64), index, alg="philox"
    )


def uniforms(
    seed: int, purpose: int, step: tf.Tensor, part: Part, count: int
) -> tf.Tensor:
    """Returns numbers in [0, 1) for each example of a part, [size, count].

    They belong to the example's place in the stream: ranks draw those of the
    whole batch and take theirs.
    """
    return part.of(
        tf.random.stateless_uniform(
            [part.batch_size, count],
            key(seed, purpose, step),
            alg="philox",
        )
    )


def permutation(size: int, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """Returns the order of `size` examples in an epoch, int32 [size]."""
    return tf.random.experimental.stateless_shuffle(
        tf.range(size), key(seed, ORDER, epoch), alg="philox"
    )


def shuffled(
    size: int, part: Part, seed: int, first_step: int = 0
) -> tf.data.Dataset:
    """Returns the steps and indices [part.size] of the batches, endlessly."""
    first_epoch, offset = divmod(first_step * part.batch_size, size)

    def order(epoch):
        skipped = tf.cast(epoch == first_epoch, tf.int64) * offset
        return permutation(size, seed, epoch)[skipped:]

    indices = tf.data.Dataset.counter(first_epoch).map(order)
    indices = indices.rebatch(part.batch_size).map(part.of)
    return tf.data.Dataset.zip(tf.data.Dataset.counter(first_step), indices)


def in_turn(size: int, part: Part) -> tf.data.Dataset:
    """Returns indices and weights of all examples, once, in file order.

    All ranks get ceil(size / batch_size) batches. Places that no example is
    left for have weight 0 and the index of the last example.

    Returns:
        A finite data set of int64 [part.size] and float32 [part.size].
    """

    def batch(step):
        index = step * part.batch_size + part.of(
            tf.range(part.batch_size, dtype=tf.int64)
        )
        return tf.minimum(index, size - 1), tf.cast(index < size, tf.float32)

    return tf.data.Dataset.range(-(-size // part.batch_size)).map(batch)
