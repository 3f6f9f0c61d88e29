"""Models by the name that --model gives them.

    small_images  small CNNs, ResNets of CIFAR, VGG-11, AlexNet
    resnet50      for ImageNet
    transformer   the language models

A module is imported when a model of it is asked for.
"""

from collections.abc import Callable

import keras

NAMES = (
    "small_cnn",
    "small_cnn_bn",
    "simple_cnn",
    "resnet8",
    "resnet8_bn",
    "resnet8_ghost",
    "resnet20",
    "resnet32",
    "resnet32_ghost",
    "resnet50",
    "vgg11",
    "vgg11_ghost",
    "alexnet",
)
LANGUAGE_NAMES = ("transformer", "small_transformer")


def maker(name: str) -> Callable[..., keras.Model]:
    """Returns the function that makes a model.

    It is `(image_shape, classes) -> keras.Model`, to logits, for `NAMES`, and
    `(vocabulary) -> keras.Model`, to the logits of the next tokens, for
    `LANGUAGE_NAMES`.

    Raises:
        KeyError: There is no such model.
    """
    if name in LANGUAGE_NAMES:
        from trainers.models import transformer

        return transformer.MODELS[name]
    if name == "resnet50":
        from trainers.models import resnet50

        return resnet50.MODELS[name]
    from trainers.models import small_images

    return small_images.MODELS[name]
