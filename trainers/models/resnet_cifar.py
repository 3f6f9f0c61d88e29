"""Residual networks for small images."""

import keras
from keras import layers, ops

from trainers import constraints
from trainers.layers import normalize


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
    constraints.enforce(model)
    return model


def _shortcut(x, filters: int, strides: int):
    """Returns x, subsampled and with channels of zeros for the missing ones."""
    if strides > 1:
        x = x[:, ::strides, ::strides]
    missing = filters - x.shape[-1]
    if missing:
        x = ops.pad(x, [[0, 0], [0, 0], [0, 0], [0, missing]])
    return x
