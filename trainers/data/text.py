"""Sentences as tokens, made once by rank 0 and kept in files.

A directory for each vocabulary holds

    tokenizer.model  of sentencepiece: token 0 is padding, 1 the end of a
                     sentence, 2 what is unknown
    <split>.tokens   an end of sentence, then each sentence and its end, as
                     unsigned integers of 16 or 32 bits
    <split>.ends     where each sentence ends in that, 64 bits
    meta.json        what it was made of, and the SHA-256 of the other files
"""

import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from trainers import files, launch
from trainers.data import on_disk, once

PADDING, END, UNKNOWN = range(3)
TRAINING_SENTENCES = 1_000_000  # The first ones; the tokenizer learns on them.
_AT_ONCE = 10_000  # Sentences that are encoded in one call.


def pydocs_topics() -> list[str]:
    """Returns the topics of the standard library's documentation."""
    from pydoc_data import topics

    return [topics.topics[key] for key in sorted(topics.topics)]


def pydocs(split: str) -> list[str]:
    """Returns its paragraphs, every tenth for "test", the rest for "train"."""
    found = [
        " ".join(paragraph.split())
        for topic in pydocs_topics()
        for paragraph in re.split(r"\n\s*\n", topic)
    ]
    found = [paragraph for paragraph in found if paragraph]
    if split == "train":
        del found[9::10]
        return found
    return found[9::10]


def lm1b(builder, split: str) -> Iterator[str]:
    """Yields the sentences of the 1 Billion Word Benchmark in file order."""
    import tensorflow_datasets as tfds

    with on_disk.reading(builder, split):
        examples = builder.as_dataset(
            split=split,
            read_config=tfds.ReadConfig(interleave_cycle_length=1),
        )
        for batch in examples.batch(_AT_ONCE).as_numpy_iterator():
            for text in batch["text"]:
                yield text.decode("utf-8")


def train_tokenizer(
    sentences: Iterable[str], vocabulary: int, name: str
) -> bytes:
    """Returns a sentencepiece unigram model of so many tokens.

    Args:
        sentences: What it learns on.
        vocabulary: The number of tokens, the three above among them.
        name: Of the data set, for errors.

    Raises:
        SystemExit: The text does not give so many tokens, or needs more.
    """
    launch.require_package("sentencepiece", "text", f"--dataset={name}")
    import io

    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=vocabulary,
            pad_id=PADDING,
            eos_id=END,
            unk_id=UNKNOWN,
            bos_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split("] ")[-1].split())
        raise SystemExit(
            f"--vocabulary={vocabulary}: {name} cannot be cut into so many "
            f"tokens: {reason}"
        ) from error
    return model.getvalue()


def prepare(
    name: str,
    version: str,
    sentences: Mapping[str, Callable[[], Iterable[str]]],
    vocabulary: int,
    parent: pathlib.Path,
) -> tuple[pathlib.Path, dict[str, int]]:
    """Makes the directory of a text's tokens if it is not there.

    Args:
        name: Of the data set.
        version: Of its text.
        sentences: From the split to its sentences.
        vocabulary: The number of tokens.
        parent: Where to make the directory.

    Returns:
        The directory and, from the split, the number of its sentences.

    Raises:
        SystemExit: The files are not those of the text and the vocabulary.
    """

    def make(path):
        first = itertools.islice(sentences["train"](), TRAINING_SENTENCES)
        model = train_tokenizer(first, vocabulary, name)
        (path / "tokenizer.model").write_bytes(model)
        splits = {
            split: _encode(path, split, of(), tokenizer(path), vocabulary)
            for split, of in sentences.items()
        }
        meta = {
            "version": version,
            "vocabulary": vocabulary,
            "splits": splits,
            "digests": {f.name: _digest(f) for f in sorted(path.iterdir())},
        }
        (path / "meta.json").write_text(json.dumps(meta))

    path = once.made_once(directory(name, version, vocabulary, parent), make)
    return path, _check(path, vocabulary, sentences)


def directory(
    name: str, version: str, vocabulary: int, parent: pathlib.Path
) -> pathlib.Path:
    """Returns where `prepare` keeps a text's tokens."""
    return parent / f"{name}-{version}-{vocabulary}"


def tokenizer(path: pathlib.Path):
    """Returns the sentencepiece processor of a directory."""
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(
        model_file=str(path / "tokenizer.model")
    )


def _encode(path, split, sentences, processor, vocabulary):
    """Writes the files of a split; returns how much is in them."""
    position, count = 1, 0
    with (
        (path / f"{split}.tokens").open("wb") as tokens,
        (path / f"{split}.ends").open("wb") as ends,
    ):
        np.array([END], dtype(vocabulary)).tofile(tokens)
        sentences = iter(sentences)
        while batch := list(itertools.islice(sentences, _AT_ONCE)):
            encoded = processor.encode(
                batch, add_eos=True, num_threads=os.cpu_count()
            )
            lengths = np.cumsum([len(sentence) for sentence in encoded])
            (position + lengths).astype("int64").tofile(ends)
            flat = itertools.chain.from_iterable(encoded)
            np.fromiter(flat, dtype(vocabulary)).tofile(tokens)
            position, count = position + int(lengths[-1]), count + len(batch)
    return {"sentences": count, "tokens": position}


def dtype(vocabulary: int) -> np.dtype:
    """Returns what the files hold a token in."""
    return np.dtype("uint16" if vocabulary <= 2**16 else "uint32")


def _check(path, vocabulary, splits):
    """Returns the numbers of sentences, or exits where a file is wrong."""
    mend = f"remove {path}, and it is made again"
    try:
        meta = json.loads((path / "meta.json").read_text())
        found = {
            "tokenizer.model": tokenizer(path).vocab_size(),
            "meta.json": meta["vocabulary"],
        }
        for what, value in found.items():
            if value != vocabulary:
                raise SystemExit(
                    f"--vocabulary={vocabulary}: {path / what} is of {value} "
                    f"tokens; {mend}"
                )
        for split in splits:
            if split not in meta["splits"]:
                raise _DamageError("meta.json", f"has no split {split!r}")
            _check_split(path, split, meta["splits"][split], dtype(vocabulary))
        _check_digests(path, splits, meta.get("digests"))
    except _DamageError as error:
        name, problem = error.args
        raise SystemExit(f"{path / name}: {problem}; {mend}") from error
    except (
        OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError
    ) as error:  # fmt: skip
        if getattr(error, "errno", None) in files.TOO_MANY_FILES:
            raise
        raise SystemExit(f"{path}: cannot be read ({error}); {mend}") from error
    return {split: meta["splits"][split]["sentences"] for split in splits}


class _DamageError(Exception):
    """The name of a file, and what is wrong with it."""


def _check_split(path, split, counts, kind):
    """Raises _DamageError where the files of a split do not fit its counts."""
    sizes = {
        f"{split}.tokens": counts["tokens"] * kind.itemsize,
        f"{split}.ends": counts["sentences"] * 8,
    }
    for name, expected in sizes.items():
        size = (path / name).stat().st_size
        if size != expected:
            problem = f"has {size} bytes, {expected} are expected"
            raise _DamageError(name, problem)
    ends = np.memmap(path / f"{split}.ends", "int64", "r")
    if ends[-1] != counts["tokens"] or np.any(np.diff(ends) < 1):
        problem = f"does not lead through {split}.tokens"
        raise _DamageError(f"{split}.ends", problem)


def _check_digests(path, splits, digests):
    """Raises _DamageError where a file is not as it was written.

    Folders of before there were digests are taken as they are: to make one of
    lm1b again takes hours.
    """
    if digests is None:
        _warn(path)
        return
    kinds = ("tokens", "ends")
    of_splits = [f"{split}.{kind}" for split in splits for kind in kinds]
    for name in ("tokenizer.model", *of_splits):
        if _digest(path / name) != digests[name]:
            raise _DamageError(name, "is damaged: it is not as it was written")


@functools.cache
def _warn(path):
    print(
        f"{path}: was made without digests, so that damage to its files would "
        "not be noticed; remove it, and it is made again with them",
        file=sys.stderr,
    )


def _digest(path):
    """Returns that of a file; what has not changed is read once."""
    status = path.stat()
    return _digest_of(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _digest_of(path, size, time):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
