"""The coverage report: how second moments of convolutions are taken."""

import keras
import pytest
import tensorflow as tf
from keras import layers
from own_models import Function

import tfkfac
from tfkfac import blocks, report
from tfkfac.convolution import method


def rows(model, **options):
    """Returns the cells of the report by the layer's path and the head."""
    optimizer = tfkfac.KFAC(model=model)
    model.compile(optimizer, "mse")
    optimizer.build(model.trainable_variables)
    attached = optimizer._attached
    layers = getattr(attached, "layers", attached)
    text = report.table(
        model, layers.registration, optimizer.curvature, **options
    )
    head, dashes, *lines = text.splitlines()
    starts = [0] + [
        i + 2 for i in range(len(dashes)) if dashes[i : i + 2] == "  "
    ]
    spans = [slice(a, b) for a, b in zip(starts, [*starts[1:], None])]
    names = [head[span].strip() for span in spans]
    return {
        line.split()[0]: dict(zip(names, (line[s].strip() for s in spans)))
        for line in lines[:-1]
    }


def methods(model, **options):
    return {k: v["method"] for k, v in rows(model, **options).items()}


def planes(size=32):
    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(16, 3, padding="same", name="narrow")(inputs)
    x = layers.Conv2D(128, 3, padding="same", name="wide")(x)
    x = layers.Conv2D(128, 3, padding="same", name="wider")(x)
    x = layers.Conv2D(256, 3, strides=2, padding="same", name="strided")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.SeparableConv2D(8, 2, name="separable")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(2, name="logits")(x))


def test_methods_where_the_size_is_known():
    assert methods(planes()) == {
        "narrow": "convolution",
        "wide": "convolution",
        "wider": "frequencies",
        "strided": "patches",
        "depthwise": "channels",
        "separable/depthwise": "channels",
        "separable/pointwise": "patches",
        "logits": "",
    }


@pytest.mark.parametrize("options", [{}, {"product_dtype": tf.float16}])
def test_patches_where_nothing_else_may_be_taken(monkeypatch, options):
    """With the switch of the block, or products in half precision."""
    if not options:
        monkeypatch.setattr(blocks.ConvolutionBlock, "without_patches", False)
    assert {*methods(planes(), **options).values()} == {"patches", ""}
    assert {*methods(planes(None), **options).values()} == {"patches", ""}


UNKNOWN = {
    "narrow": "patches, convolution or frequencies by the size of its input",
    "depthwise": "patches or channels by the size of its input",
    "separable/depthwise": "patches or channels by the size of its input",
    "separable/pointwise": "patches",
}


def test_methods_where_the_size_is_not_known():
    found = methods(planes(None))
    assert {name: found[name] for name in UNKNOWN} == UNKNOWN


def test_methods_of_a_subclass():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.convolution = layers.Conv2D(2, 3, name="convolution")

        def call(self, x):
            return self.convolution(x)

    model = Own()
    model(tf.zeros([1, 5, 5, 1]))
    assert methods(model) == {"convolution": UNKNOWN["narrow"]}


def test_methods_of_all_calls_of_a_shared_layer():
    """A kernel that reaches beyond the small image takes patches there."""
    inputs = keras.Input((9, 9, 2))
    shared = layers.Conv2D(2, 3, padding="same", name="shared")
    x = layers.MaxPool2D(6)(shared(inputs))
    model = keras.Model(inputs, shared(x))
    assert methods(model) == {"shared": "convolution and patches"}


def test_sequential_and_channels_first():
    model = keras.Sequential(
        [
            keras.Input((2, 9, 8)),
            layers.Conv2D(2, 3, data_format="channels_first", name="first"),
        ]
    )
    assert methods(model) == {"first": "convolution"}


def test_methods_of_the_phases_of_a_transposed_convolution():
    """Of a 3 x 3 kernel with strides 2 one phase has a single tap."""
    inputs = keras.Input((16, 16, 16))
    x = layers.Conv2DTranspose(16, 3, strides=2, name="phases")(inputs)
    x = layers.Conv2DTranspose(8, 2, strides=2, name="single")(x)
    outputs = layers.Conv2DTranspose(8, 3, name="whole")(x)
    assert methods(keras.Model(inputs, outputs)) == {
        "phases": "convolution and patches",
        "single": "patches",
        "whole": "convolution",
    }


def test_a_gpu_takes_no_frequencies(monkeypatch):
    monkeypatch.setattr(method, "has_gpu", lambda: True)
    assert methods(planes())["wider"] == "convolution"
    expected = "patches or convolution by the size of its input"
    assert methods(planes(None))["wider"] == expected


def test_no_column_without_convolutions():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="one")])
    assert "method" not in rows(model)["one"]


def test_what_has_no_block_is_said_once(caplog):
    """Also where the first step finds the blocks of other layers."""
    own = Function({"w": (3, 3)}, lambda layer, x: x @ layer.w)
    skipped = layers.Dense(2, name="skipped")
    model = keras.Sequential([keras.Input((3,)), own, skipped])
    model.compile(tfkfac.KFAC(model=model, skip=["skipped"]), "mse")
    for _ in range(2):
        model.train_on_batch(tf.ones([4, 3]), tf.ones([4, 2]))
    messages = [record.getMessage() for record in caplog.records]
    assert len([text for text in messages if "named in skip" in text]) == 1
