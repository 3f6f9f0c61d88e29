"""Products, convolutions, scales and shifts of layers of one's own, against
K-FAC in float64."""

import hand
import keras
import numpy as np
import pytest
import reference_layers
import tensorflow as tf
from keras import layers, ops
from oracle import ONE_UPDATE, element_error
from own_models import Function, Own, Scaled, case_of, eagerly, summary, trained
from wrapped import SETTINGS, kfac

import tfkfac

WAYS = ["matmul", "operator", "dot", "einsum", "tensorflow", "no bias", "left"]


@pytest.mark.parametrize(
    "way, eager",
    [(way, True) for way in WAYS] + [("dot", False), ("einsum", False)],
)
def test_products_that_are_found(float64, way, eager):
    case = case_of(Own(way), run_eagerly=eager)
    assert max(case.run()) < 1e-9


@eagerly
def test_scales_that_are_found(float64, eager):
    case = case_of(Scaled(), run_eagerly=eager)
    assert max(case.run()) < 1e-9


HEADS = {"k": (4, 2, 3), "a": (2, 3), "out": (2, 3, 5), "bias": (5,)}


def heads(layer, x):
    """Projections by heads, a score of each head, their joint projection."""
    h = ops.einsum("bti,ihd->bthd", x, layer.k)
    score = tf.einsum("bthd,hd->bth", h, layer.a)
    h = h * tf.tanh(score)[..., tf.newaxis]
    return ops.einsum("bthd,hde->bte", h, layer.out) + layer.bias


def heads_by_hand(h, x, prefix="own/"):
    k = tf.reshape(h.product(prefix + "k", x), [-1, 3, 2, 3])
    score = h.product(prefix + "a", k)
    k = k * tf.tanh(score)
    return h.product(prefix + "out", tf.reshape(k, [-1, 3, 6]))


@eagerly
def test_heads_and_groups(float64, eager):
    """Kernels with three axes, and one that has a group for each head."""
    rng = np.random.default_rng(0)
    own, last = Function(HEADS, heads, name="own"), layers.Dense(3)
    model = keras.Sequential([keras.Input((3, 4)), own, last])
    optimizer = kfac(model, eager)
    k, a, out, bias = (v.numpy() for v in own.trainable_variables)
    by_hand = hand.Hand(
        {
            "own/k": k.reshape(4, 6),
            "own/a": a.reshape(2, 3, 1),
            "own/out": hand.stacked(out.reshape(6, 5), bias),
            "last": hand.stacked(last.kernel, last.bias),
        },
        {"own/k", "own/a", "own/out", "last"},
        **SETTINGS,
    )
    for _ in range(3):
        x, y = rng.normal(size=(4, 3, 4)), rng.integers(0, 3, size=(4, 3))

        def forward(h, x=x, y=y):
            s = h.product("last", heads_by_hand(h, tf.constant(x)))
            return hand.cross_entropy(tf.reshape(s, [12, 3]), y.ravel())

        by_hand.update(forward, 12)
        model.train_on_batch(x, y)
    k, a, out, bias = (v.numpy() for v in own.trainable_variables)
    W = by_hand.W
    assert element_error(k.reshape(4, 6), W["own/k"]) < 1e-9
    assert element_error(a.reshape(2, 3, 1), W["own/a"]) < 1e-9
    stacked = hand.stacked(out.reshape(6, 5), bias)
    assert element_error(stacked, W["own/out"]) < 1e-9
    state = optimizer.curvature.state()
    for i, name in enumerate(["input_factor", "output_factor"]):
        M = state[f"own/a/{name}/moment"] / state[f"own/a/{name}/weight"]
        expected = [f.M[i] / f.c for f in by_hand.factors["own/a"]]
        assert element_error(M, np.array(expected)) < 1e-9


def test_a_bias_whose_product_goes_elsewhere(float64):
    """It has no block, for g of the product is not that of the sum."""

    def call(layer, x):
        s = x @ layer.w
        return tf.concat([s + layer.b, s], -1)

    shapes = {"w": (4, 5), "b": (5,)}
    text = summary(trained(Function(shapes, call, name="own")))
    assert "own/b: " in text and "used elsewhere, too" in text
    assert "own/w  " in text


@pytest.mark.parametrize("own", [Own, Scaled])
def test_sampled_targets(float64, own):
    samples = np.array([2, 0, 1, 2])
    case = case_of(own(), samples=samples, likelihood=tfkfac.Categorical)
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("own", [Own, Scaled])
def test_several_updates(float64, own):
    case = case_of(own(), batch=12, run_eagerly=False)
    case.batch = 4
    case.options = ONE_UPDATE | {"momentum": 0.9, "inverter": "eigen"}
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("own", [Own, Scaled])
def test_float32(own):
    case = case_of(own(), batch=8)
    case.x = case.x.astype("float32")
    case.options = ONE_UPDATE | {"damping": 1.0}
    assert max(case.run()) < 1e-5
    assert case.condition() <= 100


@pytest.mark.filterwarnings("ignore:.*does not support mask.*")
@eagerly
@pytest.mark.parametrize("own", ["matmul", "dot", "einsum", "scaled"])
def test_masked_rows(float64, own, eager):
    """Also where rows and positions were made one axis for the product."""
    own = Scaled() if own == "scaled" else Own(own)
    own.supports_masking = True
    case = case_of(own, run_eagerly=eager)
    case.x[0, 1:] = case.x[2, 2] = 0
    case.layers.insert(0, layers.Masking())
    assert max(case.run()) < 1e-9


def test_a_layer_that_is_called_twice(float64):
    case = case_of(Own(units=4))
    case.layers.insert(2, case.layers[1])
    assert max(case.run()) < 1e-9


def test_by_time_steps(float64):
    """Each step is a use, as of the same layer on the whole sequence."""
    found = []
    for wrap in (lambda x: x, layers.TimeDistributed):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        own = Own(name="own")
        optimizer = trained(wrap(own), (3, 4), fisher="empirical")
        state = optimizer.curvature.state()
        found.append([v for k, v in state.items() if "own/w/" in k])
    assert len(found[0]) == 7
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("own", [Own, Scaled])
def test_mixed_precision(own):
    keras.config.set_dtype_policy("mixed_float16")
    optimizer = trained(own(name="own"), (3, 4), steps=2)
    state = optimizer.curvature.state()
    assert all(np.isfinite(v).all() for v in state.values())
    assert any(k.startswith("own/") and v.any() for k, v in state.items())


class OwnConvolution(layers.Layer):
    """A convolution of tanh(x), in a way of `ops.conv`."""

    parts = ("/k",)

    def __init__(self, kernel, strides=1, padding="valid", **options):
        super().__init__(name=options.get("name"))
        self.shape, self.strides, self.padding = kernel, strides, padding
        self.dilation = options.get("dilation", 1)

    def build(self, shape):
        self.k = self.add_weight(shape=self.shape)
        self.b = self.add_weight(shape=self.shape[-1:])

    def call(self, x):
        s = ops.conv(
            ops.tanh(x),
            self.k,
            self.strides,
            self.padding,
            dilation_rate=self.dilation,
        )
        return s + self.b

    def compute_output_shape(self, shape):
        *window, _, c_out = self.shape
        stock = getattr(layers, f"Conv{len(window)}D")
        options = {"dilation_rate": self.dilation, "padding": self.padding}
        like = stock(c_out, window, self.strides, **options)
        return like.compute_output_shape(shape)

    def mirror(self, shape):
        k, b = (np.asarray(v, np.float64) for v in (self.k, self.b))
        of = self.strides, self.padding, self.dilation
        convolution = reference_layers.Convolution(k, b, *of)
        return [reference_layers.TANH, convolution]


@pytest.mark.parametrize(
    "shape, convolution",
    [
        ((5, 4, 3), {"kernel": (3, 2, 3, 4), "padding": "same"}),
        ((6, 5, 3), {"kernel": (2, 2, 3, 4), "strides": 2}),
        ((6, 3), {"kernel": (3, 3, 4)}),
        ((3, 3, 2, 2), {"kernel": (2, 2, 1, 2, 3)}),
    ],
)
@eagerly
def test_convolutions_that_are_found(float64, shape, convolution, eager):
    case = case_of(OwnConvolution(**convolution), shape, run_eagerly=eager)
    assert max(case.run()) < 1e-9


def test_a_convolution_of_parts_of_images_is_left_out():
    """TensorFlow takes a dilated one apart, with rows that are cropped."""
    own = OwnConvolution((3, 3, 4), dilation=2, name="own")
    text = summary(trained(own, (6, 3)))
    assert "its call uses it in Conv2D" in text
