"""Which examples are in which batch, and what is done to their images, as
functions of the seed and the step.

The examples of all epochs make one stream: epoch after epoch, each in an order
of its own. Global batch s is the s-th run of `batch_size` examples of it, so
that the last batch of an epoch is filled from the next one; rank r of R takes
the r-th of R equal parts of each batch. What is random about an image comes in
as numbers in [0, 1), one row for each example.
"""

import dataclasses

import tensorflow as tf

# What random numbers are for: numbers of one purpose say nothing about others.
ORDER, AUGMENTATION, ERASING, MIXUP = range(4)

# The carried batch of running mixup is begun anew, example by example, once in
# so many steps, so that a resumed run need not read everything before.
MEMORY = 128


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


def random_crop(
    images: tf.Tensor, size: tuple[int, int], u: tf.Tensor
) -> tf.Tensor:
    """Returns a window of each image.

    Args:
        images: [batch, height, width, channels].
        size: Height and width of the windows.
        u: Numbers for the row and the column, [batch, 2].
    """
    for axis in (1, 2):
        length = size[axis - 1]
        choices = images.shape[axis] - length + 1
        starts = tf.cast(u[:, axis - 1] * choices, tf.int32)
        places = starts[:, tf.newaxis] + tf.range(length)
        images = tf.gather(images, places, axis=axis, batch_dims=1)
    return images


def pad(images: tf.Tensor, padding: int) -> tf.Tensor:
    """Returns [batch, height, width, channels] with black borders."""
    borders = [padding, padding]
    return tf.pad(images, [[0, 0], borders, borders, [0, 0]])


def center_crop(images: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Returns the window of `size` in the middle of each image."""
    top = (images.shape[1] - size[0]) // 2
    left = (images.shape[2] - size[1]) // 2
    return images[:, top : top + size[0], left : left + size[1]]


def random_flip(images: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
    """Returns the images, each mirrored where its number is below 1/2."""
    mirror = tf.reshape(u < 0.5, [-1, 1, 1, 1])
    return tf.where(mirror, tf.reverse(images, [2]), images)


def random_erasing(
    images: tf.Tensor,
    u: tf.Tensor,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.25),
    aspect: tuple[float, float] = (0.3, 1.0),
) -> tf.Tensor:
    """Returns the images with a rectangle of zeros in some of them.

    Osawa et al. 2019, section 4.1: the area S_e and the aspect ratio r_e are
    uniform, H_e = sqrt(S_e r_e) and W_e = sqrt(S_e / r_e) are swapped in every
    other image; the place is uniform among those where the rectangle fits.
    Sides are rounded to pixels, and are at least one pixel.

    Args:
        images: [batch, height, width, channels].
        u: [batch, 6].
        probability: Of a rectangle.
        area: Its least and greatest share of the image.
        aspect: Its least and greatest aspect ratio.
    """
    height, width = images.shape[1:3]
    share = area[0] + u[:, 1] * (area[1] - area[0])
    ratio = aspect[0] + u[:, 2] * (aspect[1] - aspect[0])
    sides = tf.stack([tf.sqrt(share * ratio), tf.sqrt(share / ratio)])
    sides *= tf.sqrt(float(height * width))
    sides = tf.where(u[:, 3] < 0.5, sides, sides[::-1])
    erased = tf.reshape(u[:, 0] < probability, [-1, 1, 1, 1])
    for axis, length in ((1, height), (2, width)):
        side = tf.clip_by_value(tf.round(sides[axis - 1]), 1.0, length)
        start = tf.floor(u[:, 3 + axis] * (length - side + 1))
        place = tf.range(float(length))
        inside = (place >= start[:, tf.newaxis]) & (
            place < (start + side)[:, tf.newaxis]
        )
        shape = [-1, length, 1, 1] if axis == 1 else [-1, 1, length, 1]
        erased &= tf.reshape(inside, shape)
    return tf.where(erased, tf.zeros([], images.dtype), images)


def mixup_weights(
    step: tf.Tensor, part: Part, alpha: float, seed: int
) -> tf.Tensor:
    """Returns lambda of running mixup for each example, [part.size].

    It is drawn from Beta(alpha, alpha), but is 1 at step 0 and, for the example
    at place j of the global batch, where step + j is a multiple of `MEMORY`.
    """
    gammas = tf.random.stateless_gamma(
        [2, part.batch_size], key(seed, MIXUP, step), alpha
    )
    place = tf.range(part.batch_size, dtype=tf.int64)
    fresh = (step == 0) | ((step + place) % MEMORY == 0)
    return part.of(tf.where(fresh, 1.0, gammas[0] / (gammas[0] + gammas[1])))


def running_mixup(
    batches: tf.data.Dataset, part: Part, alpha: float, seed: int
) -> tf.data.Dataset:
    """Mixes each batch with the mixed batch of the step before.

    Osawa et al. 2019, equations 9 to 11: for each example,
    x~(t) = lambda x(t) + (1 - lambda) x~(t-1), and so for the labels.
    `mixup_weights` makes the result at step t a function of the last `MEMORY`
    raw batches: begin that many before the first step that is wanted.

    Args:
        batches: Of (step, images, one-hot labels), all float32 but the step.
        part: Which part of the global batch that is.
        alpha: Of the Beta distribution.
        seed: Of lambda.

    Returns:
        A data set of the same elements.
    """
    start = [tf.zeros(s.shape, s.dtype) for s in batches.element_spec[1:]]

    def mix(carried, element):
        step, raw = element[0], element[1:]
        weights = mixup_weights(step, part, alpha, seed)
        mixed = tuple(_mix(weights, new, old) for new, old in zip(raw, carried))
        return mixed, (step, *mixed)

    return batches.scan(tuple(start), mix)


def _mix(weights, new, old):
    weights = tf.reshape(weights, [-1] + [1] * (len(new.shape) - 1))
    return weights * new + (1.0 - weights) * old
