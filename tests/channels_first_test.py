"""Layers with channels first, against K-FAC in float64 NumPy.

On CPUs TensorFlow runs some in float32 alone, or in float64 under XLA.
"""

import keras
import numpy as np
import pytest
from keras import layers
from oracle import ONE_UPDATE, single

import tfkfac

FIRST = {"data_format": "channels_first", "activation": "tanh"}
LAYERS = {  # The layer, the shape of its inputs.
    "line": (lambda: layers.Conv1D(3, 3, padding="same", **FIRST), (2, 6)),
    "line causal": (
        lambda: layers.Conv1D(3, 3, padding="causal", dilation_rate=2, **FIRST),
        (2, 6),
    ),
    "plane": (lambda: layers.Conv2D(3, 3, strides=2, **FIRST), (2, 6, 5)),
    "plane in groups": (
        lambda: layers.Conv2D(4, 3, groups=2, padding="same", **FIRST),
        (2, 4, 5),
    ),
    "volume": (lambda: layers.Conv3D(3, 2, **FIRST), (2, 3, 4, 3)),
    "depthwise line": (
        lambda: layers.DepthwiseConv1D(3, depth_multiplier=2, **FIRST),
        (2, 7),
    ),
    "depthwise plane": (
        lambda: layers.DepthwiseConv2D(3, strides=2, **FIRST),
        (3, 6, 5),
    ),
    "separable line": (lambda: layers.SeparableConv1D(3, 3, **FIRST), (2, 6)),
    "separable plane": (
        lambda: layers.SeparableConv2D(3, 3, padding="same", **FIRST),
        (2, 6, 5),
    ),
    "transposed line": (
        lambda: layers.Conv1DTranspose(3, 3, strides=2, **FIRST),
        (2, 5),
    ),
    "transposed plane": (
        lambda: layers.Conv2DTranspose(
            3, 3, strides=2, padding="same", **FIRST
        ),
        (2, 3, 4),
    ),
    "transposed volume": (
        lambda: layers.Conv3DTranspose(2, 3, strides=2, **FIRST),
        (2, 2, 1, 2),
    ),
}
# Those that TensorFlow runs in float64 without XLA on CPUs.
ALSO_IN_FLOAT64 = [
    "plane in groups",
    "volume",
    "depthwise line",
    "depthwise plane",
    "separable line",
    "separable plane",
]


@pytest.mark.parametrize("kind", LAYERS)
def test_float32(kind):
    layer, shape = LAYERS[kind]
    case = single(layer(), shape, batch=8)
    case.x = case.x.astype("float32")
    case.options = ONE_UPDATE | {"damping": 1.0}
    assert max(case.run()) < 1e-5
    assert case.condition() <= 100


@pytest.mark.parametrize("kind", ALSO_IN_FLOAT64)
def test_float64(float64, kind):
    layer, shape = LAYERS[kind]
    assert max(single(layer(), shape, batch=3).run()) < 1e-9


def both_formats(first):
    """A network in one format or the other, always with the same weights."""
    keras.utils.clear_session(free_memory=False)
    own = {"data_format": "channels_first" if first else "channels_last"}
    axis = {"axis": 1 if first else -1}
    inputs = keras.Input((2, 6, 7) if first else (6, 7, 2))
    x = layers.Conv2D(4, 3, padding="same", name="convolution", **own)(inputs)
    x = layers.BatchNormalization(name="batch", **axis)(x)
    x = layers.Activation("tanh")(x)
    x = layers.MaxPool2D(2, **own)(x)
    x = layers.Conv2DTranspose(6, 3, strides=2, name="transposed", **own)(x)
    x = layers.GroupNormalization(3, name="group", **axis)(x)
    x = layers.SeparableConv2D(5, 2, name="separable", **own)(x)
    x = layers.AveragePooling2D(2, **own)(layers.Activation("tanh")(x))
    x = layers.GlobalAveragePooling2D(**own)(x)
    model = keras.Model(inputs, layers.Dense(3, name="logits")(x))
    rng = np.random.default_rng(1)
    for v in model.trainable_variables:
        v.assign(rng.normal(size=v.shape) / 2)
    return model


@pytest.mark.parametrize("norm_curvature", ["unitwise", "full"])
def test_a_network_is_that_with_channels_last(norm_curvature):
    """Convolutions, pooling and normalization, over two updates."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 6, 7, 2)).astype("float32")
    y = rng.integers(0, 3, 8)
    found = []
    for first in (False, True):
        model = both_formats(first)
        optimizer = tfkfac.KFAC(
            0.1, damping=1.0, norm_curvature=norm_curvature, model=model
        )
        lines = []
        optimizer.summary(print_fn=lines.append)
        assert "(100.0 %) in 7 blocks" in lines[-1]
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, run_eagerly=True)
        for _ in range(2):
            model.train_on_batch(np.moveaxis(x, -1, 1) if first else x, y)
        state = optimizer.curvature.state()
        weights = {v.path: v.numpy() for v in model.trainable_variables}
        found.append(state | weights)
    last, first = found
    assert last.keys() == first.keys()
    for name, value in last.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(first[name], value, 1e-4, 1e-4 * scale, name)


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.convolution = layers.Conv2D(4, 3, name="convolution", **FIRST)
        self.logits = layers.Dense(2, name="logits")

    def call(self, x):
        return self.logits(keras.ops.mean(self.convolution(x), axis=(2, 3)))


def functional(shape):
    inputs = keras.Input(shape)
    x = layers.Conv2D(4, 3, name="convolution", **FIRST)(inputs)
    x = layers.GlobalAveragePooling2D(data_format="channels_first")(x)
    return keras.Model(inputs, layers.Dense(2, name="logits")(x))


REASON = "which is as long as the 4 channels, which come first"


@pytest.mark.parametrize("build", [lambda: functional((2, 5, 6)), Own])
def test_a_bias_along_the_last_axis_goes_to_the_fallback(build):
    """Keras adds it there where that is as long as the channels."""
    model = build()
    x = np.random.default_rng(0).normal(size=(4, 2, 5, 6)).astype("float32")
    y = np.zeros([4, 2], "float32")
    model(x)
    optimizer = tfkfac.KFAC(0.1, model=model)
    model.compile(optimizer, "mse")
    (convolution,) = (x for x in model.layers if x.name == "convolution")
    before = convolution.get_weights()
    model.train_on_batch(x, y)
    model.train_on_batch(x, y)
    lines = []
    optimizer.summary(print_fn=lines.append)
    assert lines[-1].count(REASON) == 2  # The kernel and the bias.
    for old, new in zip(before, convolution.get_weights()):
        assert np.abs(new - old).max() > 0


@pytest.mark.parametrize("shape", [(2, 6, 5), (2, None, None)])
def test_another_last_axis_is_covered(shape):
    lines = []
    tfkfac.KFAC(model=functional(shape)).summary(print_fn=lines.append)
    assert "(100.0 %) in 2 blocks" in lines[-1]
