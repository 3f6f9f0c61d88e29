"""Layers of one's own, declared or not, against K-FAC in float64."""

import hand
import keras
import numpy as np
import pytest
import reference_layers
import reference_scales
import tensorflow as tf
from keras import layers, ops
from oracle import cross_entropy, element_error, single

import tfkfac
from tfkfac import registry

X = np.random.default_rng(0).normal(size=(8, 4))
Y = np.arange(8) % 3
eagerly = pytest.mark.parametrize(
    "eager", [True, False], ids=["eager", "graph"]
)


class Own(layers.Layer):
    """A layer of one product, with something before it and after.

    `way` says how the kernel w is read; mirrored by relu(x) W + b, then tanh.
    """

    parts = ("/w",)

    def __init__(self, way="matmul", units=5, **options):
        super().__init__(**options)
        self.way, self.units = way, units

    def build(self, shape):
        self.w = self.add_weight(shape=self._shape(shape[-1]), name="any")
        self.b = None
        if self.way not in ("no bias", "left"):
            self.b = self.add_weight(shape=(self.units,), name="any")

    def _shape(self, d):
        return (self.units, d) if self.way == "left" else (d, self.units)

    def call(self, x):
        a, w = ops.relu(x), self.w
        if self.way == "operator":
            s = a @ w
        elif self.way == "dot":
            s = ops.dot(a, w)
        elif self.way == "einsum":
            s = ops.einsum("...i,ij->...j", a, w)
        elif self.way == "tensorflow":
            s = tf.tensordot(a, w, 1)
        elif self.way == "left":
            s = ops.swapaxes(ops.matmul(w, ops.swapaxes(a, 1, 2)), 1, 2)
        else:
            s = ops.matmul(a, w)
        return ops.tanh(s if self.b is None else s + self.b)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units)

    def mirror(self, shape):
        w = np.asarray(self.w, np.float64)
        w = w.T if self.way == "left" else w
        b = None if self.b is None else np.asarray(self.b, np.float64)
        linear = reference_layers.Layer([w], b)
        return [reference_layers.RELU, linear, reference_layers.TANH]


class Scaled(layers.Layer):
    """gamma x + beta, after a shift of all channels at each position."""

    parts = ("/shift", "/gamma")

    def build(self, shape):
        self.shift = self.add_weight(shape=(1, shape[1], 1), name="shift")
        self.gamma = self.add_weight(shape=(shape[-1],), name="gamma")
        self.beta = self.add_weight(shape=(shape[-1],), name="beta")

    def call(self, x):
        return (x + self.shift) * self.gamma + self.beta

    def compute_output_shape(self, shape):
        return shape

    def mirror(self, shape):
        shift, gamma, beta = (
            np.asarray(v, np.float64)
            for v in (self.shift, self.gamma, self.beta)
        )
        last = {len(shape) - 1}
        return [
            reference_scales.Scale(None, shift, {1}),
            reference_scales.Scale(gamma, beta, last),
        ]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    """What a test registers ends with it."""
    for name in ("_BLOCKS", "_DECLARED"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


def case_of(layer, shape=(3, 4), batch=4, **options):
    """A case of an own layer between two others."""
    case = single(layers.Dense(shape[-1]), shape, batch, **options)
    case.layers.insert(1, layer)
    return case


WAYS = ["matmul", "operator", "dot", "einsum", "tensorflow", "no bias", "left"]


@eagerly
@pytest.mark.parametrize("way", WAYS)
def test_products_that_are_found(float64, way, eager):
    case = case_of(Own(way), run_eagerly=eager)
    assert max(case.run()) < 1e-9


@eagerly
def test_scales_that_are_found(float64, eager):
    case = case_of(Scaled(), run_eagerly=eager)
    assert max(case.run()) < 1e-9


# Graph attention, as the Keras example of it is described.


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
    settings = {"learning_rate": 0.1, "momentum": 0.9, "damping": 0.1}
    optimizer = tfkfac.KFAC(
        model=model,
        fisher="empirical",
        kl_clip=None,
        inverse_update_period=1,
        factor_decay=0.95,
        **settings,
    )
    model.compile(optimizer, cross_entropy(), run_eagerly=eager)
    heads = model.attention.heads
    products = {
        "dense": hand.stacked(model.first.kernel, model.first.bias),
        "dense_1": hand.stacked(model.last.kernel, model.last.bias),
    }
    for i, head in enumerate(heads):
        products[f"{i}/kernel"] = hand.stacked(head.kernel)
        products[f"{i}/attention"] = hand.stacked(head.kernel_attention)
    by_hand = hand.Hand(products, set(products), **settings)
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


def summary(optimizer):
    lines = []
    optimizer.summary(print_fn=lines.append)
    return "\n".join(lines)
