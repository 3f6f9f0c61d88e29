"""Data sets by the name that --dataset gives them.

TensorFlow is not imported until batches are asked for, so that a missing data
set is reported at once.

    catalog       names, sizes, which augmentation
    on_disk       what TFDS has prepared, and what can be wrong with it
    memory        small sets of images
    records       imagenet2012, read from its files
    images        batches of images
    augmentation  crops, flips, random erasing, running mixup
    order         which example is in which batch
    text          sentences as files of tokens
    tokens        batches of tokens
    once          files that rank 0 makes for all
"""

from trainers.data import catalog, images, tokens
from trainers.data.images import ImageData
from trainers.data.options import Options
from trainers.data.tokens import TokenData

__all__ = ["ImageData", "Options", "TokenData", "load", "published_size"]


def load(
    name: str, data_dir: str | None = None, options: Options | None = None
) -> ImageData | TokenData:
    """Returns a data set.

    Args:
        name: As in the catalog.
        data_dir: Where tensorflow-datasets keeps its data; None: its own place.
        options: How it is read.

    Raises:
        SystemExit: There is no such data set, or it is not whole on disk; the
            sentence has the command that prepares it.
    """
    if name not in catalog.CATALOG:
        raise SystemExit(
            f"--dataset={name}: choose from {', '.join(catalog.CATALOG)}"
        )
    kind = catalog.CATALOG[name]
    module = images if isinstance(kind, catalog.Images) else tokens
    return module.load(name, data_dir, options or Options())


def published_size(name: str, validation: bool = False) -> int | None:
    """Returns the number of training examples without looking at the disk.

    For text that is the number of sentences, for pydocs None, as it depends on
    the version of Python.
    """
    known = catalog.CATALOG[name]
    if known.splits is None:
        return None
    ranges = catalog.split_ranges(known.splits, known.holdout, validation)
    _, first, end = ranges["train"]
    return end - first
