"""Labelled images as batches for training and evaluation."""

import dataclasses
import functools
import pathlib
import re
from typing import TYPE_CHECKING, Union

from trainers.data import catalog, memory, on_disk
from trainers.data.options import Options

if TYPE_CHECKING:
    import tensorflow as tf

    from trainers.data import records


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
    known: catalog.Images
    options: Options
    source: Union[memory.Arrays, "records.Records"]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.known.shape

    image_shape = input_shape

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
        return catalog.evaluated(self.source.ranges)

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

        from trainers.data import augmentation, order

        part = order.Part(batch_size, rank, ranks)
        mean = self._mean()
        alpha = self.options.mixup
        start = first_step
        if alpha is not None:  # What is carried into the first step.
            start = max(0, first_step - augmentation.MEMORY + 1)

        def prepared(step, x, y):
            if self.options.augment:
                u = order.uniforms(seed, order.AUGMENTATION, step, part, 3)
                x = self._augmented(x, u)
            x, y = self._scaled(x, y, mean)
            if self.options.random_erasing:
                u = order.uniforms(seed, order.ERASING, step, part, 6)
                x = augmentation.random_erasing(x, u)
            return step, x, y

        batches = self.source.shuffled(part, seed, start).map(
            prepared, num_parallel_calls=tf.data.AUTOTUNE
        )
        if alpha is not None:
            batches = augmentation.running_mixup(batches, part, alpha, seed)
            batches = batches.skip(first_step - start)
        return batches.map(lambda _, x, y: (x, y)).prefetch(tf.data.AUTOTUNE)

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

        from trainers.data import order

        if split not in self.source.ranges:
            splits = ", ".join(self.source.ranges)
            raise ValueError(f"split={split!r}: {self.name} has {splits}")
        part = order.Part(batch_size, rank, ranks)
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
        if isinstance(self.source, memory.Arrays):
            return None
        return self.source.explain(error)

    def _augmented(self, x, u):
        """Returns crops, where the data set has it mirrored, of a batch."""
        from trainers.data import augmentation

        padding, size = self.options.crop_padding, self.input_shape[:2]
        x = augmentation.pad(
            x, self.known.padding if padding is None else padding
        )
        if x.shape[1:3] != size:
            x = augmentation.random_crop(x, size, u[:, :2])
        return augmentation.random_flip(x, u[:, 2]) if self.known.flip else x

    def _scaled(self, x, y, mean):
        """Returns what a model gets of uint8 images and labels."""
        import tensorflow as tf

        from trainers.data import augmentation

        x = augmentation.center_crop(x, self.input_shape[:2])
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


def load(name: str, data_dir: str | None, options: Options) -> ImageData:
    """Returns a data set of images; `trainers.data.load` says more."""
    known = catalog.CATALOG[name]
    if name in memory.PACKAGED:
        sizes, read = known.splits, memory.PACKAGED[name]
    else:
        builder = on_disk.builder(name, data_dir, known.splits)
        sizes = {s: builder.info.splits[s].num_examples for s in known.splits}
        read = functools.partial(memory.read_tfds, builder, known.classes)
    ranges = catalog.split_ranges(sizes, known.holdout, options.validation)
    if name == "imagenet2012":
        from trainers.data import records

        source = records.Records(builder, ranges, known.classes)
    else:
        source = memory.Arrays(ranges, read)
    return ImageData(name, known, options, source)
