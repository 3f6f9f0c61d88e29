"""Linear layers as A (x) G: rows, masks, groups and the place of the bias."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkfac
from tfkfac.blocks import DenseBlock, KroneckerBlock, LayerCall

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("float64")


class Grouped(KroneckerBlock):
    """Groups of a kernel [d_in, groups d_out], as of convolutions."""

    def __init__(self, layer, groups=2):
        d_in, d_out = layer.kernel.shape
        super().__init__(
            layer, layer.kernel, layer.bias,
            groups=groups, d_in=d_in, d_out=d_out // groups,
        )  # fmt: skip

    def input_rows(self, inputs):
        return tf.stack([inputs] * self.groups)

    def output_rows(self, outputs):
        rows = tf.reshape(outputs, [-1, self.groups, self.d_out])
        return tf.transpose(rows, [1, 0, 2])


def dense(units=4, features=3, **options):
    layer = layers.Dense(units, **options)
    layer.build((None, features))
    return layer


def test_the_bias_is_the_last_row_of_its_group():
    block = Grouped(dense())
    kernel, bias = RNG.normal(size=(3, 4)), RNG.normal(size=4)
    V = block.to_matrix([tf.constant(kernel), tf.constant(bias)]).numpy()
    for j in range(2):
        own = slice(2 * j, 2 * j + 2)
        np.testing.assert_array_equal(V[j], [*kernel[:, own], bias[own]])
    for found, given in zip(block.from_matrix(tf.constant(V)), (kernel, bias)):
        np.testing.assert_array_equal(found, given)


@pytest.mark.parametrize("case", ["none", "frozen"])
def test_without_a_trainable_bias(case):
    layer = dense(use_bias=case != "none")
    if case == "frozen":
        layer.bias.trainable = False
    block = DenseBlock(layer)
    assert block.variables == [layer.kernel] and block.bias is None
    assert [f.dim for f in block.factors] == [3, 4]
    kernel = tf.constant(RNG.normal(size=(3, 4)))
    (found,) = block.from_matrix(block.to_matrix([kernel]))
    np.testing.assert_array_equal(found, kernel)


def moments(block, *uses):
    found = block.moments(uses, tf.float64, tf.float64)
    return [(m.total.numpy(), float(m.rows)) for m in found]


def test_sums_over_the_rows_of_all_uses():
    block = Grouped(dense())
    data = [(RNG.normal(size=(n, 3)), RNG.normal(size=(n, 4))) for n in (5, 2)]
    uses = [
        LayerCall(block.layer, tf.constant(x), None, s, gradient=tf.constant(s))
        for x, s in data
    ]
    (A, rows), (G, same) = moments(block, *uses)
    assert rows == same == 7
    a = np.concatenate([x for x, _ in data])
    g = np.concatenate([s for _, s in data])
    a = np.c_[a, np.ones(7)]
    for j in range(2):
        own = g[:, 2 * j : 2 * j + 2]
        np.testing.assert_allclose(A[j], a.T @ a, rtol=1e-13)
        np.testing.assert_allclose(G[j], own.T @ own, rtol=1e-13)
    uses[1].scale = tf.constant(3.0, tf.float64)
    (_, _), (G, _) = moments(block, uses[1])
    own = data[1][1][:, :2]
    np.testing.assert_allclose(G[0], 9 * own.T @ own, rtol=1e-13)


def test_masked_rows_are_left_out():
    """Also of what is not finite there; a mask of the batch serves too."""
    block = DenseBlock(dense())
    x, g = RNG.normal(size=(2, 3, 3)), RNG.normal(size=(2, 3, 4))
    masks = {
        "steps": np.array([[True, False, True], [False, False, True]]),
        "examples": np.array([True, False]),
    }
    for mask in masks.values():
        use = LayerCall(
            block.layer, tf.constant(x), tf.constant(mask), None,
            gradient=tf.constant(g),
        )  # fmt: skip
        (A, rows), (G, _) = moments(block, use)
        keep = np.broadcast_to(mask.reshape(2, -1), (2, 3))
        assert rows == keep.sum()
        a = np.c_[x[keep], np.ones(keep.sum())]
        np.testing.assert_allclose(A[0], a.T @ a, rtol=1e-13)
        np.testing.assert_allclose(G[0], g[keep].T @ g[keep], rtol=1e-13)


@pytest.mark.parametrize("method", ["input_rows", "output_rows"])
@pytest.mark.parametrize(
    "rows",
    [
        lambda x: x[tf.newaxis],  # For x [batch, time, d] that is too many.
        lambda x: tf.reshape(x, [-1, 3]),
        lambda x: tf.reshape(x, [-1, 1, 3]),
        lambda x: tf.reshape(x, [1, 3, -1]),
    ],
    ids=["four axes", "two axes", "groups", "sizes"],
)
def test_rows_of_another_shape_are_named(method, rows):
    class Own(KroneckerBlock):
        def input_rows(self, inputs):
            right = tf.reshape(inputs, [1, -1, 3])
            return rows(inputs) if method == "input_rows" else right

        def output_rows(self, outputs):
            right = tf.reshape(outputs, [1, -1, 3])
            return rows(outputs) if method == "output_rows" else right

    layer = dense(3, 3)
    block = Own(layer, layer.kernel, layer.bias, d_in=3, d_out=3)
    x = tf.ones([2, 5, 3], tf.float64)
    last = "d_in" if method == "input_rows" else "d_out"
    said = rf"{layer.name}: `{method}` of Own.*\[groups, rows, {last}\] = \[1,"
    with pytest.raises(ValueError, match=said):
        moments(block, LayerCall(layer, x, None, x, gradient=x))


class Weights:
    """A layer of a kernel and perhaps a bias with these shapes."""

    name, trainable = "own", True

    def __init__(self, kernel, bias=None):
        self.kernel = keras.Variable(np.zeros(kernel))
        self.bias = None if bias is None else keras.Variable(np.zeros(bias))


def block_of(layer, kind=DenseBlock, **sizes):
    block = kind.__new__(kind)
    KroneckerBlock.__init__(block, layer, layer.kernel, layer.bias, **sizes)
    return block


@pytest.mark.parametrize(
    "kernel, groups",
    [
        ((3, 4), 1),
        ((3, 1, 4), 1),
        ((3, 2, 4), 2),
        ((3, 8), 2),
        ((6, 4), 2),
        ((3, 1, 2, 4), 2),
    ],
)
def test_layouts_that_may_be_right(kernel, groups):
    sizes = {"groups": groups, "d_in": 3, "d_out": 4}
    block = block_of(Weights(kernel, (groups * 4,)), **sizes)
    V = block.to_matrix([v.value for v in block.variables])
    assert V.shape == (groups, 4, 4)


@pytest.mark.parametrize(
    "kernel, groups", [((4, 3), 1), ((2, 3, 4), 2), ((3, 4, 2), 2), ((3, 5), 1)]
)
def test_layouts_that_are_wrong_are_refused(kernel, groups):
    sizes = {"groups": groups, "d_in": 3, "d_out": 4}
    said = r"own: DenseBlock takes its kernel to be \[d_in, groups, d_out\] = "
    with pytest.raises(ValueError, match=said):
        block_of(Weights(kernel), **sizes)

    class Own(DenseBlock):
        def kernel_matrix(self, kernel):
            return tf.zeros([groups, 3, 4], kernel.dtype)

    block_of(Weights(kernel), Own, **sizes)
    said = r"takes its bias to be \[groups, d_out\]"
    with pytest.raises(ValueError, match=said):
        block_of(Weights(kernel, (7,)), Own, **sizes)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.Conv2D(9, 3, groups=3), (6, 6, 3)),
        (layers.Conv2D(4, 2, groups=2), (6, 6, 2)),
        (layers.Conv1D(6, 3, groups=2), (6, 4)),
        (layers.DepthwiseConv2D((1, 3)), (6, 6, 3)),
    ],
)
def test_grouped_kernels_whose_sizes_are_alike_are_taken(layer, shape):
    """[3, 3, 1, 9] has d_in = 9, 3 groups and d_out = 3, in another order."""
    model = keras.Sequential([keras.Input(shape), layer])
    model.compile(tfkfac.KFAC(model=model), "mse")
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    assert np.isfinite(model.train_on_batch(x, model(x) + 1))


def test_a_block_without_rows_says_what_it_lacks():
    class Own(tfkfac.KroneckerBlock):
        def output_rows(self, outputs):
            return outputs[tf.newaxis]

    layer = layers.Dense(2)
    layer.build((None, 3))
    block = Own(layer, layer.kernel, None, d_in=3, d_out=2)
    with pytest.raises(NotImplementedError, match="Own needs `input_rows`"):
        block.input_rows(tf.ones([1, 3]))
