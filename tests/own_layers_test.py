"""Layers of one's own have blocks, declared or not."""

import hand
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from oracle import cross_entropy, element_error
from own_models import (
    Function,
    Own,
    Scaled,
    X,
    Y,
    case_of,
    eagerly,
    summary,
    trained,
)
from wrapped import SETTINGS, kfac

import tfkfac
from tfkfac import registry


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    """What a test registers ends with it."""
    for name in ("_BLOCKS", "_DECLARED"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


class GraphAttention(layers.Layer):
    """One head: scores of edges from both ends, normalized by target."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[0][-1], self.units))
        self.kernel_attention = self.add_weight(shape=(2 * self.units, 1))

    def call(self, inputs):
        nodes, edges = inputs
        h = ops.matmul(nodes, self.kernel)
        return attention(h, edges, lambda x: x @ self.kernel_attention)


def attention(h, edges, score):
    ends = tf.reshape(tf.gather(h, edges), [len(edges), 2 * h.shape[-1]])
    scores = tf.nn.leaky_relu(score(ends))[:, 0]
    scores = tf.exp(tf.clip_by_value(scores, -2, 2))
    count = h.shape[0]
    total = tf.math.unsorted_segment_sum(scores, edges[:, 0], count)
    scores /= tf.gather(total, edges[:, 0])
    messages = tf.gather(h, edges[:, 1]) * scores[:, tf.newaxis]
    return tf.math.unsorted_segment_sum(messages, edges[:, 0], count)


class Heads(layers.Layer):
    def __init__(self, units, count, **options):
        super().__init__(**options)
        self.heads = [GraphAttention(units) for _ in range(count)]

    def call(self, inputs):
        return ops.relu(ops.concatenate([h(inputs) for h in self.heads], -1))


class GraphNetwork(keras.Model):
    """Classifies nodes of one graph; a batch is of indices of nodes."""

    def __init__(self, nodes, edges):
        super().__init__()
        self.nodes, self.edges = nodes, edges
        self.first = layers.Dense(6, "relu")
        self.attention = Heads(3, 2)
        self.last = layers.Dense(3)

    def call(self, inputs):
        nodes, edges = inputs
        x = self.first(nodes)
        return self.last(self.attention([x, edges]) + x)

    def train_step(self, data):
        indices, labels = data[:2]
        with tf.GradientTape() as tape:
            outputs = self([self.nodes, self.edges])
            loss = self.compute_loss(
                y=labels, y_pred=tf.gather(outputs, indices)
            )
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights))
        return {"loss": loss}


@eagerly
def test_graph_attention(float64, eager):
    rng = np.random.default_rng(0)
    nodes = tf.constant(rng.normal(size=(7, 4)))
    edges = tf.constant(rng.integers(0, 7, size=(15, 2)))
    model = GraphNetwork(nodes, edges)
    model([nodes, edges])
    optimizer = kfac(model, eager, factor_decay=0.95)
    heads = model.attention.heads
    products = {
        "dense": hand.stacked(model.first.kernel, model.first.bias),
        "dense_1": hand.stacked(model.last.kernel, model.last.bias),
    }
    for i, head in enumerate(heads):
        products[f"{i}/kernel"] = hand.stacked(head.kernel)
        products[f"{i}/attention"] = hand.stacked(head.kernel_attention)
    by_hand = hand.Hand(products, set(products), **SETTINGS)
    for _ in range(3):
        indices = rng.integers(0, 7, size=4)
        labels = rng.integers(0, 3, size=4)

        def forward(h, indices=indices, labels=labels):
            x = tf.nn.relu(h.product("dense", nodes))
            outputs = [
                attention(
                    h.product(f"{i}/kernel", x),
                    edges,
                    lambda ends, i=i: h.product(f"{i}/attention", ends),
                )
                for i in range(2)
            ]
            s = h.product("dense_1", tf.nn.relu(tf.concat(outputs, -1)) + x)
            return hand.cross_entropy(tf.gather(s, indices), labels)

        by_hand.update(forward, 4)
        model.train_on_batch(indices, labels)
    found = {"dense_1": hand.stacked(model.last.kernel, model.last.bias)}
    for i, head in enumerate(heads):
        found[f"{i}/kernel"] = head.kernel.numpy()
        found[f"{i}/attention"] = head.kernel_attention.numpy()
    for path, value in found.items():
        assert element_error(value, by_hand.W[path]) < 1e-9
    text = summary(optimizer)
    assert "100.0 %" in text and "kernel_attention" in text


def test_weights_of_several_layers_are_left_out():
    first = Function({"w": (4, 4)}, lambda o, x: x @ o.w, name="first")
    second = Function({}, lambda o, x: x @ o.w, name="second")
    first.build((None, 4))
    second.w = first.w
    last = layers.Dense(4)
    model = keras.Sequential([keras.Input((4,)), first, second, last])
    optimizer = tfkfac.KFAC(0.1, model=model)
    model.compile(optimizer, "mse")
    model.train_on_batch(X, X)
    assert not any("/w/" in k for k in optimizer.curvature.state())
    assert "first/w: " in summary(optimizer)


def declared(layer):
    tfkfac.register_linear(Own, kernel="w", bias="b")
    tfkfac.register_scale(Scaled, scale="gamma", shift="beta")
    model = keras.Sequential([keras.Input((3, 4)), layer])
    return tfkfac.KFAC(0.1, model=model)


def test_declared_layers_have_blocks_before_a_call():
    assert "own/w  ProductBlock  5, 5" in summary(declared(Own(name="own")))
    text = summary(declared(Scaled(name="own")))
    assert "own/gamma  ElementwiseBlock  8 diagonal" in text
    text = summary(declared(Own("no bias", name="own")))
    assert "own/w  ProductBlock  4, 5" in text


def test_declared_layers_train_as_those_that_are_found(float64):
    results = []
    for declares in (False, True):
        if declares:
            tfkfac.register_linear(Own, kernel="w", bias="b")
        case = case_of(Own())
        assert max(case.run()) < 1e-9
        results.append(case.net.layers[1].W[0])
    np.testing.assert_array_equal(*results)


def test_declarations_that_do_not_fit():
    with pytest.raises(TypeError, match="register_linear: .* of layers"):
        tfkfac.register_linear("Own")
    tfkfac.register_linear(Function, kernel="w")
    kernel = {"w": (4, 5), "b": (5,)}
    for shapes, message in (
        ({"v": (4, 4)}, r"'w' is a trainable weight .* are \['v'\]"),
        ({"w": (4,)}, r"takes kernels \[d_in, d_out\]"),
    ):
        with pytest.raises(ValueError, match=message):
            trained(Function(shapes, lambda o, x: x))
    with pytest.raises(ValueError, match="does something else with 'w'.* Exp"):
        trained(Function(kernel, lambda o, x: x @ tf.exp(o.w)))
    tfkfac.register_linear(Function, kernel="w", bias="b")
    with pytest.raises(ValueError, match="'w' and 'b', and the call of Func"):
        trained(Function(kernel, lambda o, x: (x @ o.w) * 2 + o.b))


def test_a_block_of_a_type_takes_the_place_of_a_declaration():
    tfkfac.register_linear(Own, kernel="w")
    tfkfac.register(Own, tfkfac.blocks.DenseBlock)
    assert registry.recording(Own()) is tfkfac.blocks.DenseBlock


def test_saved_state_goes_on(tmp_path):
    """Bit for bit, in a new model whose layers have not been called yet."""

    def begin():
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((3, 4)), Own(), Scaled(), layers.Dense(3)]
        )
        model.compile(
            tfkfac.KFAC(0.1, model=model, inverse_update_period=3),
            cross_entropy(),
        )
        return model

    x = np.random.default_rng(0).normal(size=(6, 4, 3, 4)).astype("float32")
    y = np.arange(72).reshape(6, 4, 3) % 3
    model, path = begin(), tmp_path / "saved.weights.h5"
    for i in range(6):
        if i == 4:
            model.save_weights(path)
        model.train_on_batch(x[i], y[i])
    restored = begin()
    restored.load_weights(path)
    for i in (4, 5):
        restored.train_on_batch(x[i], y[i])
    states = [m.optimizer.curvature.state() for m in (model, restored)]
    assert states[0].keys() == states[1].keys()
    for name in states[0]:
        np.testing.assert_array_equal(states[0][name], states[1][name], name)
    for a, b in zip(model.get_weights(), restored.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_plans_know_what_is_found():
    model = keras.Sequential([keras.Input((3, 4)), Own(name="own")])
    (layer,) = tfkfac.plan(model, batch_size=8, ranks=1).layers
    assert (layer.path, layer.block) == ("own/w", "ProductBlock")


class Outer(layers.Layer):
    """A product of the second of two inputs, around an own layer."""

    def build(self, *shapes):
        self.inner = Own(name="inner")
        self.inner.build((None, 4))
        self.w = self.add_weight(shape=(4, 5), name="w")

    def call(self, first, second=None, scale=1.0):
        own = ops.matmul(second * scale, self.w)
        return own + self.inner(x=first)

    def compute_output_shape(self, *shapes, **more):
        return (None, 5)


@pytest.mark.parametrize("settings", [{}, {"jit_compile": True}])
def test_own_layers_in_own_layers(settings):
    """With several inputs, and by name."""
    inputs = keras.Input((4,)), keras.Input((4,))
    outputs = Outer(name="outer")(inputs[0], second=inputs[1], scale=2.0)
    model = keras.Model(inputs, layers.Dense(3)(outputs))
    accumulates = {} if settings else {"gradient_accumulation_steps": 2}
    optimizer = tfkfac.KFAC(0.1, model=model, **accumulates)
    model.compile(optimizer, cross_entropy(), **settings)
    for _ in range(2):
        model.train_on_batch([X, X[::-1]], Y)
    text = summary(optimizer)
    assert "outer/w  " in text and "outer/inner/w  " in text
    state = optimizer.curvature.state()
    A = state["outer/w/input_factor/moment"]
    A = A[0] / state["outer/w/input_factor/weight"]
    expected = 4 * X.T @ X / 8
    found = A if not accumulates else np.triu(A) + np.triu(A, 1).T
    assert element_error(found, expected) < 1e-5
