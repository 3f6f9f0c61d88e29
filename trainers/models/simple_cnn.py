"""A convolutional network of two stages and one hidden layer."""

import keras
from keras import layers

from trainers.layers import normalize


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
