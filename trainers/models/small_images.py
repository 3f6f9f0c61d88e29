"""Models for images of up to 32 x 32 pixels.

Each is a function (image_shape, classes, ...) -> keras.Model, to logits.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
from keras import layers, ops

from trainers.layers import enforce_constraints, normalize


def simple_cnn(
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    filters: tuple[int, int],
    kernel_size: int,
    units: int | None,
    normalization: str = "none",
    name: str,
) -> keras.Model:
    """Returns convolution, pooling, twice; a hidden layer; logits.

    With 32 and 64 filters of 5x5 and 1,024 units (`simple_cnn`), the "Simple
    CNN" of Zhang et al. 2019, appendix F.2, without dropout: 3,274,634
    parameters on 28x28x1 images of 10 classes. With 16 and 32 filters of 3x3
    and 64 units (`small_cnn`): 13,706 on 8x8x1 images, 105,866 on 28x28x1.
    Without a hidden layer (`small_cnn_bn`): 5,130 on 8x8x1.

    Args:
        image_shape: Height, width and channels.
        classes: The number of logits.
        filters: Of the two convolutions.
        kernel_size: Of both.
        units: Of the hidden layer; None: in its place the mean over the image,
            so that the number of parameters is that of any image size.
        normalization: As of `trainers.layers.normalize`, after a convolution.
        name: The name of the model.
    """
    inputs = x = keras.Input(image_shape)
    for i, count in enumerate(filters, start=1):
        x = layers.Conv2D(
            count,
            kernel_size,
            padding="same",
            use_bias=normalization == "none",
            name=f"convolution_{i}",
        )(x)
        x = normalize(x, normalization, f"normalization_{i}")
        x = layers.ReLU(name=f"relu_{i}")(x)
        x = layers.MaxPooling2D(2, name=f"pooling_{i}")(x)
    if units is None:
        x = layers.GlobalAveragePooling2D(name="pooling")(x)
    else:
        x = layers.Flatten(name="flatten")(x)
        x = layers.Dense(units, activation="relu", name="hidden")(x)
    x = layers.Dense(classes, name="logits")(x)
    return keras.Model(inputs, x, name=name)


def resnet_cifar(
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    depth: int,
    normalization: str = "batch",
    unit_norm: bool = False,
    name: str = "resnet",
) -> keras.Model:
    """Returns a residual network of three stages of (depth - 2) / 6 blocks.

    The network of He et al. 2015, section 4.2: a block is two 3x3 convolutions;
    the stages have 16, 32 and 64 channels; shortcuts have no weights (option
    A). Without normalization the convolutions have biases.

    On 32x32x3 images of 10 classes, trainable parameters: ResNet-20 269,722
    (published: 0.27M), ResNet-32 464,154 (0.46M), ResNet-8 without
    normalization 75,050.

    Args:
        image_shape: Height, width and channels.
        classes: The number of logits.
        depth: The number of layers with kernels: 8, 14, 20, 26, 32, ...
        normalization: As of `trainers.layers.normalize`.
        unit_norm: Whether each channel of the convolutions is constrained to
            Frobenius norm 1 (Zhang et al. 2019, appendix F.2).
        name: The name of the model.

    Raises:
        ValueError: `depth` is not 6 n + 2, or there is no such normalization.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth={depth}: must be 6 n + 2: 8, 14, 20, ...")
    constraint = keras.constraints.UnitNorm([0, 1, 2]) if unit_norm else None

    def convolve(x, filters, strides, name):
        x = layers.Conv2D(
            filters,
            3,
            strides,
            padding="same",
            use_bias=normalization == "none",
            kernel_initializer="he_normal",
            kernel_constraint=constraint,
            name=f"{name}_convolution",
        )(x)
        return normalize(x, normalization, f"{name}_normalization")

    def block(x, filters, strides, name):
        shortcut = _shortcut(x, filters, strides)
        x = layers.ReLU()(convolve(x, filters, strides, f"{name}_1"))
        x = convolve(x, filters, 1, f"{name}_2")
        return layers.ReLU()(layers.Add()([x, shortcut]))

    inputs = keras.Input(image_shape)
    x = layers.ReLU()(convolve(inputs, 16, 1, "stem"))
    for stage, filters in enumerate((16, 32, 64), start=1):
        for i in range(1, (depth - 2) // 6 + 1):
            strides = 2 if stage > 1 and i == 1 else 1
            x = block(x, filters, strides, f"stage_{stage}_block_{i}")
    x = layers.GlobalAveragePooling2D(name="pooling")(x)
    x = layers.Dense(classes, kernel_initializer="he_normal", name="logits")(x)
    model = keras.Model(inputs, x, name=name)
    enforce_constraints(model)
    return model


def _shortcut(x, filters: int, strides: int):
    """Returns x, subsampled and with channels of zeros for the missing ones."""
    if strides > 1:
        x = x[:, ::strides, ::strides]
    missing = filters - x.shape[-1]
    if missing:
        x = ops.pad(x, [[0, 0], [0, 0], [0, 0], [0, missing]])
    return x


def vgg11(
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    normalization: str = "batch",
    unit_norm: bool = False,
    name: str = "vgg11",
) -> keras.Model:
    """Returns VGG-11: eight 3x3 convolutions, five poolings, one dense layer.

    Configuration A of Simonyan and Zisserman 2015 with the one dense layer of
    Zhang et al. 2019, appendix F.2. On 32x32x3 images of 10 classes, trainable
    parameters: 9,228,362 with normalization; 9,225,610 with biases in its
    place (no count is published; with both there would be the 9,231,114 that
    implementations for CIFAR report).

    Args:
        image_shape: Height, width and channels.
        classes: The number of logits.
        normalization: As of `trainers.layers.normalize`.
        unit_norm: Whether each channel of the convolutions is constrained to
            Frobenius norm 1 (Zhang et al. 2019, appendix F.2).
        name: The name of the model.
    """
    constraint = keras.constraints.UnitNorm([0, 1, 2]) if unit_norm else None
    inputs = x = keras.Input(image_shape)
    stages = [[64], [128], [256, 256], [512, 512], [512, 512]]
    for stage, filters in enumerate(stages, start=1):
        for i, count in enumerate(filters, start=1):
            x = layers.Conv2D(
                count,
                3,
                padding="same",
                use_bias=normalization == "none",
                kernel_initializer="he_normal",
                kernel_constraint=constraint,
                name=f"stage_{stage}_{i}_convolution",
            )(x)
            x = normalize(x, normalization, f"stage_{stage}_{i}_normalization")
            x = layers.ReLU()(x)
        # Padded, so that images smaller than 32x32 pass too.
        x = layers.MaxPooling2D(
            2, padding="same", name=f"stage_{stage}_pooling"
        )(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(classes, kernel_initializer="he_normal", name="logits")(x)
    model = keras.Model(inputs, x, name=name)
    enforce_constraints(model)
    return model


def alexnet(
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    name: str = "alexnet",
) -> keras.Model:
    """Returns AlexNet: five convolutions, three poolings, one dense layer.

    Ma et al. 2019 (third version) name AlexNet on SVHN and print no widths;
    taken here is the form in common use for 32x32 images: the convolutions of
    Krizhevsky 2014 ("One weird trick") and a single dense layer. 2,472,266
    parameters on 32x32x3 images of 10 classes (published for that form: 2.47M).
    """
    inputs = x = keras.Input(image_shape)
    specification = [  # Filters, kernel size, strides, whether pooling follows.
        (64, 11, 4, True),
        (192, 5, 1, True),
        (384, 3, 1, False),
        (256, 3, 1, False),
        (256, 3, 1, True),
    ]
    for i, (filters, size, strides, pools) in enumerate(specification, 1):
        x = layers.Conv2D(
            filters,
            size,
            strides,
            padding="same",
            activation="relu",
            kernel_initializer="he_normal",
            name=f"convolution_{i}",
        )(x)
        if pools:  # Padded, so that images smaller than 32x32 pass too.
            x = layers.MaxPooling2D(2, padding="same", name=f"pooling_{i}")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(classes, kernel_initializer="he_normal", name="logits")(x)
    return keras.Model(inputs, x, name=name)


_GHOST: dict[str, Any] = {"normalization": "ghost", "unit_norm": True}

# By the name that --model gives them.
MODELS: dict[str, Callable[..., keras.Model]] = {
    "small_cnn": partial(
        simple_cnn, filters=(16, 32), kernel_size=3, units=64, name="small_cnn"
    ),
    "small_cnn_bn": partial(
        simple_cnn,
        filters=(16, 32),
        kernel_size=3,
        units=None,
        normalization="batch",
        name="small_cnn_bn",
    ),
    "simple_cnn": partial(
        simple_cnn,
        filters=(32, 64),
        kernel_size=5,
        units=1024,
        name="simple_cnn",
    ),
    "resnet8": partial(
        resnet_cifar, depth=8, normalization="none", name="resnet8"
    ),
    "resnet8_bn": partial(resnet_cifar, depth=8, name="resnet8_bn"),
    "resnet8_ghost": partial(
        resnet_cifar, depth=8, name="resnet8_ghost", **_GHOST
    ),
    "resnet20": partial(resnet_cifar, depth=20, name="resnet20"),
    "resnet32": partial(resnet_cifar, depth=32, name="resnet32"),
    "resnet32_ghost": partial(
        resnet_cifar, depth=32, name="resnet32_ghost", **_GHOST
    ),
    "vgg11": vgg11,
    "vgg11_ghost": partial(vgg11, name="vgg11_ghost", **_GHOST),
    "alexnet": alexnet,
}
