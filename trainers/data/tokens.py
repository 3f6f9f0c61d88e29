"""Sequences of tokens as batches for training and evaluation."""

import dataclasses
import functools
import os
import pathlib
import platform
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from trainers.data import on_disk, text

if TYPE_CHECKING:
    import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Text:
    """A data set of sentences.

    Attributes:
        splits: The published numbers of sentences; None: by Python's version.
        holdout: Of how many parts of "train" one, the last, is held out for
            validation.
    """

    splits: dict[str, int] | None
    holdout: int


CATALOG = {
    "pydocs": Text(None, holdout=10),
    "lm1b": Text({"train": 30_301_028, "test": 306_688}, holdout=100),
}
_SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Options:
    """How text is read.

    Attributes:
        validation: Hold out the last training sentences as a validation split.
        vocabulary: The number of tokens.
        length: Tokens in a sequence.
        packed: Sentences joined and cut into sequences without padding; else
            each sentence by itself, cut or padded with token 0.
        text_dir: Where tokenizer and tokens are kept; None: beside the data.

    Raises:
        ValueError: A number is out of its range.
    """

    validation: bool = False
    vocabulary: int = 32_768
    length: int = 128
    packed: bool = True
    text_dir: str | None = None

    def __post_init__(self):
        for name in ("vocabulary", "length"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}={value}: must be greater than 0")


class Sequences:
    """The sequences of a split, read from files in any order.

    Packed, they are the text's consecutive pieces of `length` tokens; what is
    left at its end is dropped. Padded, each is a sentence, cut to `length`.

    Args:
        path: The directory of the tokens.
        split: The published split.
        first: The first sentence.
        end: Where the sentences end.
        options: Length, vocabulary, whether packed.
    """

    def __init__(
        self,
        path: pathlib.Path,
        split: str,
        first: int,
        end: int,
        options: Options,
    ):
        ends = np.memmap(path / f"{split}.ends", "int64", "r")
        before = ends[first - 1] if first else 1
        # The end of the sentence before is where the first one begins.
        self._file = path / f"{split}.tokens"
        tokens = np.memmap(self._file, text.dtype(options.vocabulary), "r")
        self._tokens = tokens[before - 1 : ends[end - 1]]
        self._ends, self._start = ends[first:end], before - 1
        self._vocabulary = options.vocabulary
        self._packed, self._length = options.packed, options.length

    def __len__(self) -> int:
        if self._packed:
            return (len(self._tokens) - 1) // self._length
        return len(self._ends)

    def inputs_and_targets(
        self, index: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns tokens and the next ones, int32 [len(index), length] each.

        The first token of a sentence follows token 1, its end is token 1;
        token 0 pads.
        """
        index = np.asarray(index, "int64")
        if self._packed:
            starts = index * self._length
            ends = starts + self._length + 1
        else:
            ends = self._ends[index] - self._start
            before = self._ends[index - 1] - self._start
            starts = np.where(index > 0, before, 1) - 1
        places = starts[:, np.newaxis] + np.arange(self._length + 1)
        tokens = self._tokens[np.minimum(places, len(self._tokens) - 1)]
        if tokens.max() >= self._vocabulary:
            raise ValueError(
                f"{self._file}: is damaged: tokens are from 0 to "
                f"{self._vocabulary - 1}, and one is {tokens.max()}; remove "
                f"{self._file.parent}, and it is made again"
            )
        tokens = tokens.astype("int32")
        next_tokens = tokens[:, 1:] * (places[:, 1:] < ends[:, np.newaxis])
        return tokens[:, :-1] * (next_tokens > 0), next_tokens


@dataclasses.dataclass(frozen=True)
class TokenData:
    """Text for a language model.

    Batches hold tokens and the next tokens, int32 [batch, length]; token 0 is
    padding in both at the same places.

    Attributes:
        name: Of the data set.
        options: How it is read.
        directory: Of the tokenizer and the tokens.
        ranges: From the split to (published split, first sentence, end).
    """

    name: str
    options: Options
    directory: pathlib.Path
    ranges: dict[str, tuple[str, int, int]]

    @property
    def input_shape(self) -> tuple[int]:
        """The length of a sequence."""
        return (self.options.length,)

    @property
    def classes(self) -> int:
        """The number of tokens in the vocabulary."""
        return self.options.vocabulary

    @property
    def train_size(self) -> int:
        """The number of training sequences."""
        return len(self.sequences("train"))

    @property
    def eval_splits(self) -> tuple[str, ...]:
        """The splits that `evaluation` takes."""
        return on_disk.evaluated(self.ranges)

    def sequences(self, split: str) -> Sequences:
        """Returns the sequences of a split."""
        found = Sequences(self.directory, *self.ranges[split], self.options)
        if not len(found):
            raise SystemExit(
                f"--dataset={self.name}: split {split!r} has no sequence of "
                f"{self.options.length} tokens; give a smaller length"
            )
        return found

    def train(
        self,
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        first_step: int = 0,
    ) -> "tf.data.Dataset":
        """Returns a rank's part of the training batches, endlessly.

        The batch of a step is a function of `seed` and the step. The last batch
        of an epoch is filled from the next one.

        Args:
            batch_size: The number of sequences on all ranks together.
            seed: Of the order.
            rank: Whose part of each batch it is.
            ranks: In how many parts a batch comes.
            first_step: The step, from 0, of the first batch.

        Raises:
            ValueError: The ranks do not divide the batch.
        """
        import tensorflow as tf

        from trainers.data import batches

        part = batches.Part(batch_size, rank, ranks)
        read = self._reader("train", part.size)
        indices = batches.shuffled(self.train_size, part, seed, first_step)
        return indices.map(lambda _, i: read(i)).prefetch(tf.data.AUTOTUNE)

    def evaluation(
        self, split: str, batch_size: int, rank: int = 0, ranks: int = 1
    ) -> "tf.data.Dataset":
        """Returns a rank's share of a split, in as many batches for each rank.

        Args:
            split: One of `eval_splits`, or "train".
            batch_size: The number of sequences on all ranks together.
            rank: Whose share it is.
            ranks: The number of ranks.

        Returns:
            A finite data set of tokens, next tokens and weights, float32
            [batch, length], which are 1, and 0 where the next token is padding
            and in the sequences that fill up the last batches.

        Raises:
            ValueError: The ranks do not divide the batch, or no such split.
        """
        import tensorflow as tf

        from trainers.data import batches

        if split not in self.ranges:
            splits = ", ".join(self.ranges)
            raise ValueError(f"split={split!r}: {self.name} has {splits}")
        part = batches.Part(batch_size, rank, ranks)
        read = self._reader(split, part.size)

        def weighted(index, weights):
            x, y = read(index)
            return x, y, tf.cast(y > 0, tf.float32) * weights[:, tf.newaxis]

        indices = batches.in_turn(len(self.sequences(split)), part)
        return indices.map(weighted).prefetch(tf.data.AUTOTUNE)

    def explain(self, error: Exception) -> str | None:
        """Returns what `Sequences` said of a damaged file, if that is it."""
        found = re.search("ValueError: (.*: is damaged.*)", str(error))
        return found[1] if found else None

    def _reader(self, split, batch_size):
        """Returns a function of indices in a graph; the files stay on disk."""
        import tensorflow as tf

        sequences = self.sequences(split)
        shape = [batch_size, self.options.length]

        def read(index):
            x, y = tf.numpy_function(
                sequences.inputs_and_targets, [index], [tf.int32, tf.int32]
            )
            return tf.ensure_shape(x, shape), tf.ensure_shape(y, shape)

        return read


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where sentences come from.

    Attributes:
        read: From a split to its sentences.
        version: Of the text.
        place: Where its tokens are kept.
        sizes: The numbers of sentences where they are known.
    """

    read: Callable[[str], Iterable[str]]
    version: str
    place: pathlib.Path
    sizes: dict[str, int]


def _source(name, data_dir, text_dir) -> _Source:
    if name == "pydocs":
        place = data_dir or os.environ.get("TFDS_DATA_DIR")
        place = pathlib.Path(place or "~/tensorflow_datasets").expanduser()
        place = pathlib.Path(text_dir or place)
        return _Source(text.pydocs, platform.python_version(), place, {})
    builder = on_disk.builder(name, data_dir, _SPLITS)
    sizes = {s: builder.info.splits[s].num_examples for s in _SPLITS}
    read = functools.partial(text.lm1b, builder)
    place = pathlib.Path(text_dir or builder.data_path)
    return _Source(read, str(builder.version), place, sizes)


def prepared(name: str, data_dir: str | None, options: Options) -> bool:
    """Returns whether `load` finds the tokens on disk."""
    try:
        source = _source(name, data_dir, options.text_dir)
    except SystemExit:
        return False
    of = (name, source.version, options.vocabulary, source.place)
    return text.directory(*of).is_dir()


def load(
    name: str, data_dir: str | None = None, options: Options | None = None
) -> TokenData:
    """Returns a data set of text, whose tokens are made where they are not.

    Args and errors are those of `images.load`.
    """
    if name not in CATALOG:
        raise SystemExit(f"--dataset={name}: choose from {', '.join(CATALOG)}")
    options = options or Options()
    source = _source(name, data_dir, options.text_dir)
    sentences = {s: functools.partial(source.read, s) for s in _SPLITS}
    directory, sizes = text.prepare(
        name, source.version, sentences, options.vocabulary, source.place
    )
    for split, size in source.sizes.items():
        if size != sizes[split]:
            raise SystemExit(
                f"{directory}: is of other data, with {sizes[split]:,} and not "
                f"{size:,} sentences of {split!r}; give another --text_dir or "
                "remove it"
            )
    holdout = CATALOG[name].holdout
    ranges = on_disk.split_ranges(sizes, holdout, options.validation)
    return TokenData(name, options, directory, ranges)


def published_size(name: str, validation: bool = False) -> int | None:
    """Returns the number of training sentences without looking at the disk.

    For pydocs that is None, as it depends on the version of Python.
    """
    known = CATALOG[name]
    if known.splits is None:
        return None
    ranges = on_disk.split_ranges(known.splits, known.holdout, validation)
    _, _, size = ranges["train"]
    return size
