"""Data sets of images by the name that --dataset gives them.

`load` needs no TensorFlow, so that a missing data set is reported at once.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from trainers import extras

if TYPE_CHECKING:
    import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Images and their labels, in a training and a test split.

    Attributes:
        name: Of the data set.
        image_shape: Height, width, channels.
        classes: The number of labels.
        train_size: The number of training examples.
        scale: The pixel value that becomes 1.
        examples: From "train" or "test" to pairs of image and label.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: int
    train_size: int
    scale: float
    examples: Callable[[str], "tf.data.Dataset"]

    def train(
        self, batch_size: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> "tf.data.Dataset":
        """Returns one epoch of whole batches, shuffled anew each time.

        The n-th epoch drawn from it is a function of `seed`, TensorFlow's
        global seed and n.

        Args:
            batch_size: The number of examples on all ranks together.
            seed: Of the order.
            rank: Whose part of each batch it is.
            ranks: In how many parts a batch comes.
        """
        examples = self.examples("train").shuffle(self.train_size, seed=seed)
        batches = examples.batch(batch_size, drop_remainder=True)
        if ranks > 1:
            part = slice(
                batch_size * rank // ranks, batch_size * (rank + 1) // ranks
            )
            batches = batches.map(lambda x, y: (x[part], y[part]))
        return self._scaled(batches)

    def test(self, batch_size: int) -> "tf.data.Dataset":
        """Returns all test examples in batches."""
        return self._scaled(self.examples("test").batch(batch_size))

    def _scaled(self, batches):
        import tensorflow as tf

        return batches.map(
            lambda x, y: (tf.cast(x, tf.float32) / self.scale, y),
            num_parallel_calls=tf.data.AUTOTUNE,
        ).prefetch(tf.data.AUTOTUNE)


def load(name: str, data_dir: str | None = None) -> ImageData:
    """Returns the data set; exits with the mend if it is not on disk."""
    return _digits() if name == "digits" else _from_tfds(name, data_dir)


def _digits() -> ImageData:
    """Scikit-learn's 1,797 handwritten digits: 1,437 to train, 360 to test."""
    extras.require("sklearn", "data", "--dataset=digits")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("uint8")
    x, x_test, y, y_test = train_test_split(
        images, labels, test_size=360, stratify=labels, random_state=0
    )
    splits = {"train": (x, y), "test": (x_test, y_test)}

    def examples(split):
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices(splits[split])

    return ImageData("digits", (8, 8, 1), 10, len(x), 16.0, examples)


def _from_tfds(name: str, data_dir: str | None) -> ImageData:
    """A data set that tensorflow-datasets has prepared on disk."""
    extras.require("tensorflow_datasets", "data", f"--dataset={name}")
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir)
    if not (builder.data_path / "dataset_info.json").exists():
        place = f", data_dir={str(data_dir)!r}" if data_dir else ""
        prepare = f"tfds.builder({name!r}{place}).download_and_prepare()"
        raise SystemExit(
            f"--dataset={name}: {builder.data_path} has no data; prepare it "
            "with: python -c "
            f'"import tensorflow_datasets as tfds; {prepare}"'
        )
    return ImageData(
        name,
        image_shape=builder.info.features["image"].shape,
        classes=builder.info.features["label"].num_classes,
        train_size=builder.info.splits["train"].num_examples,
        scale=255.0,
        examples=lambda split: builder.as_dataset(
            split=split, as_supervised=True
        ),
    )
