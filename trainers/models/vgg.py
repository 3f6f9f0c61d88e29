"""VGG for small images."""

import keras
from keras import layers

from trainers import constraints
from trainers.layers import normalize


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
    constraints.enforce(model)
    return model
