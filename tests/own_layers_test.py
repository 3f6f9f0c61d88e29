"""Layers of one's own, declared or not, against K-FAC in float64."""

import threading

import hand
import keras
import numpy as np
import pytest
import reference_layers
import reference_scales
import tensorflow as tf
from keras import layers, ops
from oracle import ONE_UPDATE, cross_entropy, element_error, single
from tensorflow.python.ops import gen_math_ops

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
    """(1 + gamma) x + beta, after a shift of each position."""

    parts = ("/shift", "/gamma")

    def build(self, shape):
        self.shift = self.add_weight(shape=(1, shape[1], 1), name="shift")
        self.gamma = self.add_weight(shape=(shape[-1],), name="gamma")
        self.beta = self.add_weight(shape=(shape[-1],), name="beta")

    def call(self, x):
        return (x + self.shift) * (1 + self.gamma) + self.beta

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
            reference_scales.OnePlusScale(gamma, beta, last),
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


class Function(layers.Layer):
    """A layer whose call is a function of its weights, by shape."""

    def __init__(self, shapes, function, **options):
        super().__init__(**options)
        self.shapes, self.function = shapes, function

    def build(self, shape):
        for name, of in self.shapes.items():
            setattr(self, name, self.add_weight(shape=of, name=name))

    def call(self, x):
        return self.function(self, x)


def trained(layer, shape=(4,), eager=False, steps=1, **settings):
    """Trains a model of the layer and a Dense layer; returns its optimizer."""
    model = keras.Sequential(
        [keras.Input(shape), layer, layers.Flatten(), layers.Dense(3)]
    )
    settings = {"learning_rate": 0.01, **settings}
    optimizer = tfkfac.KFAC(model=model, **settings)
    model.compile(optimizer, cross_entropy(), run_eagerly=eager)
    x = np.random.default_rng(0).normal(size=(8, *shape))
    for _ in range(steps):
        model.train_on_batch(x, Y)
    return optimizer


def in_a_loop(layer, x):
    return tf.while_loop(
        lambda i, y: i < 2, lambda i, y: (i + 1, y @ layer.w), [0, x]
    )[1]


def in_a_function(layer, x):
    return tf.function(lambda y: y @ layer.w)(x)


def with_a_penalty(layer, x):
    layer.add_loss(tf.nn.l2_loss(layer.w))
    return x @ layer.w


SQUARE = {"w": (4, 4)}
# Shapes of the weights, what the call does, and what is said of w.
REFUSED = {
    "another operation": (SQUARE, lambda o, x: x @ ops.exp(o.w), "in Exp"),
    "twice": (SQUARE, lambda o, x: (x @ o.w) @ o.w, "in MatMul (2 times)"),
    "penalty": (SQUARE, with_a_penalty, "L2Loss and MatMul"),
    "a slice": (SQUARE, lambda o, x: x @ o.w[:, :2], "in StridedSlice"),
    "a lookup": (
        SQUARE,
        lambda o, x: x + tf.gather(o.w, tf.zeros([8], tf.int32)),
        "in GatherV2",
    ),
    "a raw operation": (
        SQUARE,
        lambda o, x: tf.raw_ops.MatMul(a=x, b=o.w),
        "in a raw MatMul",
    ),
    "two weights": (
        {"w": (4, 2), "v": (2, 3)},
        lambda o, x: x @ (o.w @ o.v),
        "in MatMul",
    ),
    "no inputs": (
        SQUARE,
        lambda o, x: x + tf.reduce_sum(o.w @ tf.ones([4, 4])),
        "in MatMul",
    ),
    "a diagonal": (
        SQUARE,
        lambda o, x: tf.einsum("bi,ii->bi", x, o.w),
        "in Einsum",
    ),
    "no gradient": (
        SQUARE,
        lambda o, x: x + x @ tf.stop_gradient(o.w),
        "in StopGradient",
    ),
    "unused": (SQUARE, lambda o, x: x, "was not seen to use it"),
    "a scale of what is not examples": (
        {"w": (8,)},
        lambda o, x: tf.transpose(tf.transpose(x) * o.w),
        "in Mul",
    ),
    "a loop": (SQUARE, in_a_loop, "While"),
    "a function": (SQUARE, in_a_function, "PartitionedCall"),
    "a branch": (
        SQUARE,
        lambda o, x: tf.cond(x[0, 0] > 9, lambda: x, lambda: x @ o.w),
        "If",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_understood_is_left_out(kind):
    """The weight has no block, and the report says what was seen."""
    shapes, function, seen = REFUSED[kind]
    graph = kind in ("a loop", "a function", "a branch", "twice")
    own = Function(shapes, function, name="own")
    optimizer = trained(own, eager=not graph)
    assert not any(k.startswith("own/w/") for k in optimizer.curvature.state())
    (line,) = [x for x in summary(optimizer).split("\n") if "own/w:" in x]
    assert "no curvature block for Function: " in line and seen in line


# By hand: heads, groups, several weights.

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
    settings = {"learning_rate": 0.1, "momentum": 0.9, "damping": 0.1}
    optimizer = tfkfac.KFAC(
        model=model,
        fisher="empirical",
        kl_clip=None,
        inverse_update_period=1,
        **settings,
    )
    model.compile(optimizer, cross_entropy(), run_eagerly=eager)
    k, a, out, bias = (v.numpy() for v in own.trainable_variables)
    by_hand = hand.Hand(
        {
            "own/k": k.reshape(4, 6),
            "own/a": a.reshape(2, 3, 1),
            "own/out": hand.stacked(out.reshape(6, 5), bias),
            "last": hand.stacked(last.kernel, last.bias),
        },
        {"own/k", "own/a", "own/out", "last"},
        **settings,
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


def test_another_use_in_another_call():
    """A block goes where a later call does something else."""

    def call(layer, x):
        return x @ (ops.square(layer.w) if layer.squares else layer.w)

    own = Function({"w": (4, 5)}, call, name="own")
    own.squares = False
    optimizer = trained(own, eager=True)
    assert "own/w/input_factor/moment" in optimizer.curvature.state()
    own.squares = True
    model = optimizer.require_attached().model
    model.train_on_batch(X, Y)
    assert "own/w/input_factor/moment" not in optimizer.curvature.state()
    assert "in Square" in summary(optimizer)


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


# Declarations.


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


# Sampled targets, float32, masks, mixed precision, saved state.


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


def test_other_threads_are_not_heard():
    """Nor do TensorFlow's functions stay replaced after a call."""
    before = gen_math_ops.mat_mul
    others = []

    def call(layer, x):
        def multiply():
            others.append(tf.matmul(tf.ones([2, 4]), layer.w))

        thread = threading.Thread(target=multiply)
        thread.start()
        thread.join()
        return x @ layer.w

    own = Function({"w": (4, 5)}, call, name="own")
    text = summary(trained(own, eager=True))
    assert others and "own/w  ProductBlock  4, 5" in text
    assert gen_math_ops.mat_mul is before


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
