"""Images that are read from their files as they are needed: imagenet2012."""

import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from trainers.data import batches, on_disk, once

RESIZED = (256, 256)
WINDOW = 1024  # Records that are shuffled among each other.
FILES = 16  # That are read in turn.
MEAN_OF = 10_000  # Images that the mean image is the mean of.
_PARALLEL = tf.data.AUTOTUNE


class Records:
    """A source of JPEG images, resized to 256 x 256 ignoring their aspect.

    A rank reads its own shard of each split, of equal size to within one
    example. Each pass over it is shuffled by the order of the files, of which
    `FILES` are read in turn, and within windows of `WINDOW` records; which
    examples share a batch therefore depends on the number of ranks. To begin
    in the middle of a pass, records are read and dropped undecoded.

    Args:
        builder: Of TFDS, with the data on disk.
        ranges: From the split to (published split, first example, end).
        classes: The number of labels.
    """

    def __init__(
        self, builder, ranges: dict[str, tuple[str, int, int]], classes: int
    ):
        if builder.info.file_format.value != "tfrecord":
            raise SystemExit(
                f"--dataset={builder.name}: {builder.data_path} holds "
                f"{builder.info.file_format.value} files; prepare it as "
                "tfrecord, the default of TFDS"
            )
        self.builder = builder
        self.ranges = ranges
        self._classes = classes

    def explain(self, error: Exception) -> str:
        """Returns a sentence that names the file of a damaged record."""
        splits = self.builder.info.splits
        return on_disk.explain(self.builder, splits, error, self._decode)

    def size(self, split: str) -> int:
        """Returns the number of examples."""
        _, first, end = self.ranges[split]
        return end - first

    def shuffled(
        self, part: batches.Part, seed: int, first_step: int
    ) -> tf.data.Dataset:
        """Returns the steps, images and labels of the batches, endlessly."""
        files, size = self._files("train", part.rank, part.ranks)
        if not size:
            raise SystemExit(
                f"--dataset={self.builder.name}: {self.size('train')} "
                f"training examples are too few for {part.ranks} ranks"
            )
        first_epoch, offset = divmod(first_step * part.size, size)

        def epoch(number):
            key = batches.key(seed, batches.ORDER, number)
            records = self._read([_shuffle(f, key) for f in files], FILES)
            windows = records.batch(WINDOW).enumerate()
            windows = windows.map(
                lambda i, window: _shuffle(window, _fold(key, i + 1))
            )
            skipped = tf.cast(number == first_epoch, tf.int64) * offset
            return windows.prefetch(1).unbatch().skip(skipped)

        records = tf.data.Dataset.counter(first_epoch).flat_map(epoch)
        examples = records.map(self._decode, num_parallel_calls=_PARALLEL)
        examples = examples.batch(part.size, drop_remainder=True)
        steps = tf.data.Dataset.counter(first_step)
        return tf.data.Dataset.zip(steps, examples).map(
            lambda step, batch: (step, *batch)
        )

    def in_turn(self, split: str, part: batches.Part) -> tf.data.Dataset:
        """Returns images, labels and weights of all examples, once.

        Each rank has the same number of batches, filled up with black images of
        weight 0.
        """
        files, size = self._files(split, part.rank, part.ranks)
        examples = self._read(files, 1).map(
            self._decode, num_parallel_calls=_PARALLEL
        )
        largest = -(-self.size(split) // part.ranks)
        missing = -(-largest // part.size) * part.size - size
        black = tf.zeros([*RESIZED, 3], tf.uint8), tf.zeros([], tf.int64)
        filling = tf.data.Dataset.from_tensors((*black, 0.0)).repeat(missing)
        examples = examples.map(lambda image, label: (image, label, 1.0))
        return examples.concatenate(filling).batch(
            part.size, drop_remainder=True
        )

    def mean_image(
        self, size: tuple[int, int], directory: pathlib.Path | None
    ) -> np.ndarray:
        """Returns the mean of the upper left of the resized training images.

        It is that of the first `MEAN_OF` images on disk, where TFDS has
        shuffled them. Rank 0 computes it when it is first needed and keeps it.

        Args:
            size: Height and width of the upper left part.
            directory: Where to keep it; None: beside the data.

        Returns:
            float32 [*size, channels], from 0 to 255.

        Raises:
            ValueError: What is kept there is damaged.
        """
        directory = directory or pathlib.Path(self.builder.data_path)
        height, width = size

        def make(path):
            files, _ = self._files("train", 0, 1)
            images = self._read(files, 1).take(MEAN_OF)
            images = images.map(self._decode, num_parallel_calls=_PARALLEL)
            total, count = 0.0, 0
            with on_disk.reading(self.builder, "train", self._decode):
                for batch, _ in images.batch(64):
                    part = batch.numpy()[:, :height, :width]
                    total += part.sum(axis=0, dtype="float64")
                    count += len(part)
            np.save(path / "mean.npy", (total / count).astype("float32"))

        info = self.builder.info
        count = info.splits["train"].num_examples
        name = f"{info.name}-{info.version}-{count}"
        name += f"-mean_image_{height}x{width}"
        path = once.made_once(directory / name, make) / "mean.npy"
        try:
            mean = np.load(path)
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{path} is damaged ({error}): remove its folder, and the mean "
                "image is computed again."
            ) from error
        if mean.shape[:2] != size or not np.isfinite(mean).all():
            raise ValueError(
                f"{path} holds no mean image of {height} x {width} pixels: "
                "remove its folder, and it is computed again."
            )
        return mean

    def _files(self, split, rank, ranks):
        """Returns names, first records and numbers of records; their sum."""
        name, first, end = self.ranges[split]
        shard = tfds.even_splits(f"{name}[{first}:{end}]", ranks)[rank]
        found = self.builder.info.splits[shard].file_instructions
        names = tf.constant([str(f.filename) for f in found], tf.string)
        skips = tf.constant([f.skip for f in found], tf.int64)
        takes = [f.take for f in found]
        return [names, skips, tf.constant(takes, tf.int64)], sum(takes)

    def _read(self, files, cycle_length):
        """Returns the serialized records of the files."""
        return tf.data.Dataset.from_tensor_slices(tuple(files)).interleave(
            lambda name, skip, take: (
                tf.data.TFRecordDataset(name).skip(skip).take(take)
            ),
            cycle_length=cycle_length,
            block_length=16,
            num_parallel_calls=_PARALLEL,
        )

    def _decode(self, record):
        """Returns the resized image, uint8, and the label of a record.

        It raises a tf.errors.InvalidArgumentError where the label is out of
        range.
        """
        example = self.builder.info.features.deserialize_example(
            record, decoders={"image": tfds.decode.SkipDecoding()}
        )
        image = tf.io.decode_jpeg(example["image"], channels=3)
        image = tf.image.resize(image, RESIZED, antialias=True)
        label = example["label"]
        tf.debugging.Assert(
            (label >= 0) & (label < self._classes),
            [on_disk.out_of_range(self._classes), label],
        )
        return tf.cast(tf.round(image), tf.uint8), label


def _shuffle(x, key):
    return tf.random.experimental.stateless_shuffle(x, key, alg="philox")


def _fold(key, index):
    return tf.random.experimental.stateless_fold_in(key, index, alg="philox")
