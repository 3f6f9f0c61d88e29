"""What is trained: a model, real data that comes with a package, a target.

The targets were set once, from runs of Adam at a usual rate, and stay; so do
the models and the batch sizes. Tasks in `BENCHMARK` are those of record; tasks
in `KEPT` are for the end: no default of `KFAC` is chosen by them.
"""

import dataclasses
import functools
from collections.abc import Callable

import keras
from keras import layers

from tools.time_to_target.data import (
    Data,
    breast_cancer,
    carbon_dioxide,
    diabetes,
    digits,
    flat_mnist,
    in_other_units,
    mnist,
    mnist_components,
    noisy_mnist,
    patches,
    pydocs,
    sources,
    units_of,
)
from trainers import models

BENCHMARK = (
    "digits_cnn",
    "mnist_cnn",
    "mnist_resnet",
    "autoencoder",
    "pydocs",
    "lstm",
    "conv_autoencoder",
    "text",
    "conv1d",
    "gru",
    "diabetes",
    "breast_cancer",
    "unet",
)
KEPT = ("autoencoder", "gru", "breast_cancer")
# After the name of a task: its inputs in other units; weights drawn as before,
# or in those units, so that the function at the start is that of the task.
SCALED, IN_UNITS = "_scaled", "_in_units"


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
        target: Of that mean; None for none.
        validation_target: Of the validation loss; None for none.
    """

    data: Callable[[], Data]
    model: Callable[[], keras.Model]
    loss: str | keras.losses.Loss
    batch_size: int
    steps: int
    every: int
    target: float | None
    validation_target: float | None = None


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


def _generator():
    """DCGAN's generator (Radford et al. 2016), for images of 28 x 28.

    In a GAN its loss does not tell how far training is. Here it is a decoder,
    as in generative latent optimization (Bojanowski et al. 2018), of numbers
    that are not trained: the principal components of the image.
    """
    transposed = functools.partial(
        layers.Conv2DTranspose, kernel_size=4, strides=2, padding="same"
    )
    return keras.Sequential(
        [
            keras.Input((32,)),
            layers.Dense(7 * 7 * 32, use_bias=False),
            layers.BatchNormalization(),
            layers.Activation("relu"),
            layers.Reshape((7, 7, 32)),
            transposed(32, use_bias=False),
            layers.BatchNormalization(),
            layers.Activation("relu"),
            transposed(1),
        ]
    )


def _tied_embedding(vocabulary=32_768, width=512):
    """A tied embedding by itself, of more tokens than the text has."""
    tokens = keras.Input((None,), dtype="int32")
    tied = layers.ReversibleEmbedding(vocabulary, width)
    return keras.Model(tokens, tied(tied(tokens), reverse=True))


def _tabular(inputs: int, width: int):
    return keras.Sequential(
        [
            keras.Input((inputs,)),
            layers.Dense(width, activation="relu"),
            layers.Dense(width, activation="relu"),
            layers.Dense(1),
        ]
    )


def _in_units(task: "Task"):
    """The model of a task, for its inputs in other units: the same function."""
    model = task.model()
    units, shifts = units_of(task.data())
    kernel, bias = model.layers[0].get_weights()
    model.layers[0].set_weights(
        [kernel / units[:, None], bias - shifts @ kernel]
    )
    return model


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
    return functools.partial(models.maker(name), *args, **options)


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
        _of(
            "transformer",
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
    # Beside those of record.
    "digits_resnet": Task(
        digits, _of("resnet8", (8, 8, 1), 10), _CLASSES, 128, 400, 5, 0.05
    ),
    "digits_resnet_bn": Task(
        digits, _of("resnet8_bn", (8, 8, 1), 10), _CLASSES, 128, 400, 5, 0.02
    ),
    "generator": Task(
        mnist_components, _generator, _BINARY, 128, 800, 10, 0.09
    ),
    "tied_embedding": Task(pydocs, _tied_embedding, _CLASSES, 8, 400, 10, None),
}
TASKS["digits_cnn_512"] = dataclasses.replace(
    TASKS["digits_cnn"], batch_size=512
)
for _name in ("diabetes", "breast_cancer"):
    TASKS[_name + SCALED] = dataclasses.replace(
        TASKS[_name],
        data=functools.partial(in_other_units, TASKS[_name].data),
    )
    TASKS[_name + IN_UNITS] = dataclasses.replace(
        TASKS[_name + SCALED],
        model=functools.partial(_in_units, TASKS[_name]),
    )
