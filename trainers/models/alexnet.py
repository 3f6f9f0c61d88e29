"""AlexNet for small images."""

import keras
from keras import layers


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
