"""Models by the name that --model gives them.

`MODELS` are functions `(image_shape, classes) -> keras.Model`, to logits;
`LANGUAGE_MODELS` are functions `(vocabulary) -> keras.Model`, to the logits of
the next tokens.
"""

from functools import partial

from trainers.models.alexnet import alexnet
from trainers.models.resnet50 import resnet50
from trainers.models.resnet_cifar import resnet_cifar
from trainers.models.simple_cnn import simple_cnn
from trainers.models.transformer import transformer
from trainers.models.vgg import vgg11

MODELS = {
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
        resnet_cifar,
        depth=8,
        normalization="ghost",
        unit_norm=True,
        name="resnet8_ghost",
    ),
    "resnet20": partial(resnet_cifar, depth=20, name="resnet20"),
    "resnet32": partial(resnet_cifar, depth=32, name="resnet32"),
    "resnet32_ghost": partial(
        resnet_cifar,
        depth=32,
        normalization="ghost",
        unit_norm=True,
        name="resnet32_ghost",
    ),
    "resnet50": resnet50,
    "vgg11": vgg11,
    "vgg11_ghost": partial(
        vgg11, normalization="ghost", unit_norm=True, name="vgg11_ghost"
    ),
    "alexnet": alexnet,
}

LANGUAGE_MODELS = {
    "transformer": transformer,
    "small_transformer": partial(
        transformer, width=64, heads=4, hidden=256, name="small_transformer"
    ),
}
