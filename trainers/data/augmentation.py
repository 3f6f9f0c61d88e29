"""Augmentation of batches of images, in stateless functions.

What is random comes in as numbers in [0, 1), one row for each example.
"""

import tensorflow as tf

from trainers.data import order

# The carried batch of running mixup is begun anew, example by example, once in
# so many steps, so that a resumed run need not read everything before.
MEMORY = 128


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
    step: tf.Tensor, part: order.Part, alpha: float, seed: int
) -> tf.Tensor:
    """Returns lambda of running mixup for each example, [part.size].

    It is drawn from Beta(alpha, alpha), but is 1 at step 0 and, for the example
    at place j of the global batch, where step + j is a multiple of `MEMORY`.
    """
    gammas = tf.random.stateless_gamma(
        [2, part.batch_size], order.key(seed, order.MIXUP, step), alpha
    )
    place = tf.range(part.batch_size, dtype=tf.int64)
    fresh = (step == 0) | ((step + place) % MEMORY == 0)
    return part.of(tf.where(fresh, 1.0, gammas[0] / (gammas[0] + gammas[1])))


def running_mixup(
    batches: tf.data.Dataset, part: order.Part, alpha: float, seed: int
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
