"""A convolutional network of two stages and one hidden layer."""

import keras
from keras import layers


def simple_cnn(
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    filters: tuple[int, int],
    kernel_size: int,
    units: int,
    name: str,
) -> keras.Model:
    """Returns convolution, pooling, twice; a hidden layer; logits.

    With 16 and 32 filters of 3x3, 64 units and 10 classes (`small_cnn`): 13,706
    parameters on 8x8x1 images, 105,866 on 28x28x1.
    """
    model = keras.Sequential([keras.Input(image_shape)], name=name)
    for i, count in enumerate(filters, start=1):
        model.add(
            layers.Conv2D(
                count,
                kernel_size,
                padding="same",
                activation="relu",
                name=f"convolution_{i}",
            )
        )
        model.add(layers.MaxPooling2D(2, name=f"pooling_{i}"))
    model.add(layers.Flatten(name="flatten"))
    model.add(layers.Dense(units, activation="relu", name="hidden"))
    model.add(layers.Dense(classes, name="logits"))
    return model
