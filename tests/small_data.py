"""Small generated data sets, as tensorflow-datasets keeps the real ones.

An image is noise with a bright column where its label says; a sentence is
a run of words out of a list. The real builders read them.
"""

import io
import itertools
import pathlib
import tarfile

import numpy as np

IMAGES = {
    "cifar10": (32, 32, 3),
    "svhn_cropped": (32, 32, 3),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
}
SIZES = {"train": 48, "test": 16}
WORDS = ["".join(letters) for letters in itertools.permutations("abdeou", 4)]


def write(data_dir: pathlib.Path | str, name: str) -> dict:
    """Writes a data set; returns the examples of each split, if they are few.

    They are images and labels in the order they were given, not in that of the
    files, or sentences. Of imagenet2012 nothing is returned.
    """
    if name == "imagenet2012":
        return write_imagenet(data_dir)
    if name == "lm1b":
        examples = {
            split: {"text": sentences(size, seed)}
            for seed, (split, size) in enumerate([("train", 400), ("test", 40)])
        }
    else:
        rng = np.random.default_rng(0)
        examples = {
            split: dict(
                zip(("image", "label"), images(rng, size, IMAGES[name]))
            )
            for split, size in SIZES.items()
        }
    store(data_dir, name, examples)
    return {split: tuple(of.values()) for split, of in examples.items()}


def store(data_dir, name: str, examples: dict[str, dict]) -> None:
    """Writes the splits of a data set; columns the builder knows more of
    are empty."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir)
    features = builder.info.features
    for split, of in examples.items():
        size = len(next(iter(of.values())))
        missing = {key: [""] * size for key in features if key not in of}
        examples = {**examples, split: {**of, **missing}}
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version=str(builder.version),
        data_dir=data_dir,
        features=features,
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices(of)
            for split, of in examples.items()
        },
    )


def images(rng: np.random.Generator, size: int, shape) -> tuple:
    """Returns uint8 images [size, *shape] and labels from 0 to 9."""
    labels = rng.integers(10, size=size)
    found = rng.integers(100, size=(size, *shape))
    found[np.arange(size), :, 2 * labels + 4] = 255
    return found.astype("uint8"), labels


def sentences(size: int, seed: int) -> list[str]:
    """Returns sentences of some of the words in their order."""
    rng = np.random.default_rng(seed)
    count = len(WORDS)
    starts, lengths = rng.integers(count, size=size), rng.integers(3, 9, size)
    return [
        " ".join(WORDS[(start + i) % count] for i in range(length))
        for start, length in zip(starts, lengths)
    ]


def write_imagenet(data_dir: pathlib.Path | str, per_class: int = 12) -> dict:
    """Writes archives as they are published, has TFDS's builder prepare them.

    Images of four classes and several sizes to train, 10 to validate.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder("imagenet2012", data_dir=data_dir)
    manual = pathlib.Path(data_dir) / "downloads" / "manual"
    manual.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    names = builder.info.features["label"].names[:4]
    with tarfile.open(manual / "ILSVRC2012_img_train.tar", "w") as archive:
        for label, name in enumerate(names):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as of_class:
                for i in range(per_class):
                    _add(of_class, f"{name}_{i}.JPEG", _jpeg(rng, label))
            _add(archive, f"{name}.tar", inner.getvalue())
    with tarfile.open(manual / "ILSVRC2012_img_val.tar", "w") as archive:
        for i in range(10):
            name = f"ILSVRC2012_val_{i + 1:08d}.JPEG"
            _add(archive, name, _jpeg(rng, i % 4))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=3)
    )
    return {}


def _jpeg(rng, label):
    """Returns an image of some size, bright in an upper part by label."""
    from PIL import Image

    height, width = rng.integers(60, 400, size=2)
    pixels = rng.integers(60, 160) + rng.integers(-60, 61, (height, width, 1))
    pixels = np.repeat(pixels, 3, axis=2)
    left = label * width // 4
    pixels[: height // 2, left : left + width // 4] = 255
    file = io.BytesIO()
    Image.fromarray(pixels.astype("uint8")).save(file, "jpeg", quality=95)
    return file.getvalue()


def _add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
