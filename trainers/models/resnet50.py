"""ResNet-50 for ImageNet."""

import keras
from keras import layers

from trainers.layers import normalize


def resnet50(
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    name: str = "resnet50",
) -> keras.Model:
    """Returns ResNet-50 (He et al. 2015, table 1; Osawa et al. 2019).

    The first version, which subsamples in the first 1x1 convolution of a
    block: 53 convolutions without biases, 53 batch normalizations, 1 dense
    layer; He normal initialization. 25,557,032 trainable parameters with 1,000
    classes.
    """

    def convolve(x, filters, size, strides, name):
        x = layers.Conv2D(
            filters,
            size,
            strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"{name}_convolution",
        )(x)
        return normalize(x, "batch", f"{name}_normalization")

    def block(x, filters, strides, name):
        shortcut = x
        if x.shape[-1] != 4 * filters:
            shortcut = convolve(x, 4 * filters, 1, strides, f"{name}_shortcut")
        x = layers.ReLU()(convolve(x, filters, 1, strides, f"{name}_1"))
        x = layers.ReLU()(convolve(x, filters, 3, 1, f"{name}_2"))
        x = convolve(x, 4 * filters, 1, 1, f"{name}_3")
        return layers.ReLU()(layers.Add()([x, shortcut]))

    inputs = keras.Input(image_shape)
    x = layers.ReLU()(convolve(inputs, 64, 7, 2, "stem"))
    x = layers.MaxPooling2D(3, 2, padding="same", name="stem_pooling")(x)
    for stage, count in enumerate((3, 4, 6, 3), start=1):
        for i in range(1, count + 1):
            strides = 2 if stage > 1 and i == 1 else 1
            x = block(x, 32 * 2**stage, strides, f"stage_{stage}_block_{i}")
    x = layers.GlobalAveragePooling2D(name="pooling")(x)
    x = layers.Dense(classes, kernel_initializer="he_normal", name="logits")(x)
    return keras.Model(inputs, x, name=name)


MODELS = {"resnet50": resnet50}
