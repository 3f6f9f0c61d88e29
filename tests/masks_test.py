"""Rows that a mask masks are left out of A and G, wherever Keras keeps it.

The expected factors come from forward passes written by hand, on a tape of
their own, in float64:
    A = (1/N) sum a a^T,  G = (1/R) sum g g^T,  g = N dL/ds,
with N the number of loss terms and R that of rows, both of unmasked ones only.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkfac

B, T, S, D = 4, 5, 3, 6  # Examples, steps, steps of keys, features.
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, D))
KEEP = np.arange(T) < np.array([[2], [5], [3], [1]])
X[~KEEP] = 0  # Which `Masking` masks.
KEYS = RNG.normal(size=(B, S, D))
KEEP_KEYS = np.arange(S) < np.array([[3], [1], [2], [2]])
KEYS[~KEEP_KEYS] = 0
TOKENS = RNG.integers(1, 7, (B, S))
KEEP_TOKENS = np.arange(S) >= np.array([[1], [0], [2], [0]])
TOKENS[~KEEP_TOKENS] = 0
PAIR = RNG.normal(size=(B, 2))  # A target of each example,
PAIRS = RNG.normal(size=(B, T, 2))  # and of each step.

modes = pytest.mark.parametrize(
    "run_eagerly", [True, False], ids=["eager", "graph"]
)
ends = pytest.mark.parametrize("end", ["steps", "examples"])
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not support mask.*"),
    pytest.mark.usefixtures("float64"),
]


class ByHand:
    """A forward pass on an own tape, and the rows of its linear layers."""

    def __init__(self):
        self.tape = tf.GradientTape(persistent=True)
        self._names, self._inputs, self._outputs, self._keeps = [], [], [], []

    def linear(self, layer, a, keep=None):
        """Returns s = a W + b, with the kernel as [d_in, d_out].

        Args:
            layer: The Keras layer, for its name and weights.
            a: [..., d_in].
            keep: Which rows count, by the first axes of `a`; None for all.
        """
        W, *b = (tf.constant(w) for w in layer.get_weights())
        s = a @ tf.reshape(W, [a.shape[-1], -1])
        if b:
            s += tf.reshape(b[0], [-1])
        self.tape.watch(s)
        rows = a.shape[:-1]
        keep = np.ones(rows, bool) if keep is None else np.asarray(keep)
        keep = keep.reshape(keep.shape + (1,) * (len(rows) - keep.ndim))
        self._names.append(layer.name)
        self._inputs.append(np.array(a))
        self._outputs.append(s)
        self._keeps.append(np.broadcast_to(keep, rows))
        return s

    def factors(self, loss, terms):
        """Returns A and G of each layer by name, for N = `terms`."""
        A, G, R = {}, {}, {}
        gradients = self.tape.gradient(loss, self._outputs)
        for name, a, g, keep in zip(
            self._names, self._inputs, gradients, self._keeps
        ):
            a = np.insert(a[keep], a.shape[-1], 1, axis=-1)
            g = terms * g.numpy()[keep]
            A[name] = A.get(name, 0) + a.T @ a / terms
            G[name] = G.get(name, 0) + g.T @ g
            R[name] = R.get(name, 0) + len(g)
        factors = {f"{name}/input_factor": A[name] for name in A}
        factors |= {f"{name}/output_factor": G[name] / R[name] for name in G}
        return factors


def ending(x, end):
    """Ends a model in a loss of each step, or of each example.

    The second has no mask: masked steps have gradients, too.
    """
    if end == "examples":
        x = layers.Flatten()(x)
    return layers.Dense(2, name="end")(x)


def ending_by_hand(hand, model, x, end, keep=KEEP):
    """Returns (L, N) above x, [B, T, ...], for the targets of `end`."""
    layer = model.get_layer("end")
    if end == "examples":
        s = hand.linear(layer, tf.reshape(x, [B, -1]))
        return tf.reduce_mean((s - PAIR) ** 2), B
    s = hand.linear(layer, x, keep)
    terms = tf.reduce_mean((s - PAIRS) ** 2, axis=-1)
    return tf.reduce_sum(tf.boolean_mask(terms, keep)) / keep.sum(), keep.sum()


def make(inputs, outputs):
    """A model with random weights and biases."""
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(1)
    for v in model.trainable_variables:
        v.assign(rng.normal(size=v.shape) / np.sqrt(v.shape[0]))
    return model


def step(model, x, y, run_eagerly=True, fisher="empirical"):
    """Returns (factors by the names of layer and factor, loss) of a step."""
    optimizer = tfkfac.KFAC(0.0, fisher=fisher, factor_decay=0.0, model=model)
    model.compile(optimizer, "mse", run_eagerly=run_eagerly)
    loss = model.train_on_batch(x, y)
    found = {
        "/".join(name.split("/")[-2:]): value[0]
        for name, value in optimizer.moments().items()
    }
    return found, loss


def check(model, x, end, by_hand, run_eagerly=True):
    """Compares the factors of one step with those of a forward pass by hand.

    Args:
        model: The model.
        x: Its inputs.
        end: As of `ending`.
        by_hand: From a `ByHand` to (L, N).
        run_eagerly: Of the model.
    """
    hand = ByHand()
    with hand.tape:
        loss, terms = by_hand(hand)
    expected = hand.factors(loss, terms)
    y = PAIRS if end == "steps" else PAIR
    found, of_model = step(model, x, y, run_eagerly)
    np.testing.assert_allclose(of_model, loss, 1e-6)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, 1e-9, 1e-12, name)


def distributed_or_not(distributed, end="steps"):
    """A dense layer behind `Masking`, called by TimeDistributed or not."""
    keras.utils.clear_session(free_memory=False)
    inputs = keras.Input((T, D))
    dense = layers.Dense(3, name="dense")
    wrapped = layers.TimeDistributed(dense) if distributed else dense
    x = layers.Activation("tanh")(wrapped(layers.Masking()(inputs)))
    return make(inputs, ending(x, end))


@modes
@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_time_distributed_is_the_layer_itself(run_eagerly, fisher):
    """Equal losses have equal factors."""
    (plain, loss), (distributed, same) = (
        step(distributed_or_not(d), X, PAIRS, run_eagerly, fisher)
        for d in (False, True)
    )
    assert abs(loss - same) < 1e-6
    assert plain.keys() == distributed.keys()
    for name, value in plain.items():
        np.testing.assert_allclose(distributed[name], value, 1e-9, 1e-12, name)


@ends
@pytest.mark.parametrize("distributed", [False, True])
def test_dense(distributed, end):
    """Behind `Masking`, called by TimeDistributed or not."""
    model = distributed_or_not(distributed, end)
    dense = model.layers[2]
    dense = dense.layer if distributed else dense

    def by_hand(hand):
        h = tf.tanh(hand.linear(dense, X, KEEP))
        return ending_by_hand(hand, model, h, end)

    check(model, X, end, by_hand)


@modes
def test_two_layers_below_time_distributed(run_eagerly):
    """They are a model of its own, with the mask of one step."""
    first = layers.Dense(4, activation="tanh", name="first")
    second = layers.Dense(3, name="second")
    inner = keras.Sequential([keras.Input((D,)), first, second])
    inputs = keras.Input((T, D))
    x = layers.TimeDistributed(inner)(layers.Masking()(inputs))
    model = make(inputs, ending(x, "examples"))

    def by_hand(hand):
        h = hand.linear(first, X, KEEP)
        h = hand.linear(second, tf.tanh(h), KEEP)
        return ending_by_hand(hand, model, h, "examples")

    check(model, X, "examples", by_hand, run_eagerly)


def test_layer_without_a_mask_argument_below_time_distributed():
    """What an own layer calls has the mask of the step, too."""

    class Two(layers.Layer):
        def __init__(self):
            super().__init__()
            self.first = layers.Dense(4, activation="tanh", name="first")
            self.second = layers.Dense(3, name="second")

        def build(self, shape):
            self.first.build(shape)
            self.second.build((shape[0], 4))

        def compute_output_shape(self, shape):
            return (shape[0], 3)

        def call(self, inputs):
            return self.second(self.first(inputs))

    two = Two()
    inputs = keras.Input((T, D))
    x = layers.TimeDistributed(two)(layers.Masking()(inputs))
    model = make(inputs, ending(x, "examples"))

    def by_hand(hand):
        h = hand.linear(two.first, X, KEEP)
        h = hand.linear(two.second, tf.tanh(h), KEEP)
        return ending_by_hand(hand, model, h, "examples")

    check(model, X, "examples", by_hand)


def test_time_distributed_below_time_distributed():
    """With a mask of [examples, steps, steps within them]."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(B, T, S, D))
    keep = rng.random((B, T, S)) < 0.5
    x[~keep] = 0
    dense = layers.Dense(2, name="dense")
    inputs = keras.Input((T, S, D))
    h = layers.TimeDistributed(layers.TimeDistributed(dense))(
        layers.Masking()(inputs)
    )
    model = make(inputs, ending(h, "examples"))

    def by_hand(hand):
        s = hand.linear(dense, x, keep)
        return ending_by_hand(hand, model, s, "examples")

    check(model, x, "examples", by_hand)


IMAGES = RNG.normal(size=(B, T, 4, 2))
PADDED = np.pad(IMAGES, [(0, 0), (0, 0), (1, 1), (0, 0)])
PATCHES = np.concatenate([PADDED[:, :, i : i + 4] for i in range(3)], -1)


@modes
@pytest.mark.parametrize("sequential", [False, True])
def test_convolution_below_time_distributed(run_eagerly, sequential):
    """All positions of a masked step are left out, of what follows, too."""
    convolution = layers.Conv1D(3, 3, padding="same", name="convolution")
    dense = layers.Dense(2, name="dense")
    inputs = [keras.Input((T, 4, 2)), keras.Input((T,), dtype="bool")]
    inner = [convolution, layers.Activation("tanh"), layers.Flatten(), dense]
    if sequential:
        inner = [keras.Sequential([keras.Input((4, 2)), *inner])]
    x = inputs[0]
    for layer in inner:
        x = layers.TimeDistributed(layer)(x, mask=inputs[1])
    model = make(inputs, ending(x, "examples"))

    def by_hand(hand):
        h = tf.tanh(hand.linear(convolution, PATCHES, KEEP))
        h = hand.linear(dense, tf.reshape(h, [B, T, -1]), KEEP)
        return ending_by_hand(hand, model, h, "examples")

    check(model, [IMAGES, KEEP], "examples", by_hand, run_eagerly)


# Output 2 p + k sees position p through tap k.
UPSAMPLED = np.zeros([B, T, 9, 3])
for k in range(3):
    UPSAMPLED[:, :, k : k + 7 : 2, k] = IMAGES[..., 0]


@modes
def test_transposed_convolution_below_time_distributed(run_eagerly):
    """Its positions, more than those of its inputs, are those of a step."""
    transposed = layers.Conv1DTranspose(2, 3, strides=2, name="transposed")
    inputs = [keras.Input((T, 4, 1)), keras.Input((T,), dtype="bool")]
    x = inputs[0]
    for layer in (transposed, layers.Activation("tanh")):
        x = layers.TimeDistributed(layer)(x, mask=inputs[1])
    model = make(inputs, ending(x, "examples"))

    def by_hand(hand):
        h = tf.tanh(hand.linear(transposed, UPSAMPLED, KEEP))
        return ending_by_hand(hand, model, h, "examples")

    x = [IMAGES[..., :1], KEEP]
    check(model, x, "examples", by_hand, run_eagerly)


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
def test_dense_behind_bidirectional(kind, distributed):
    """Keras hands the mask of whole sequences on."""
    dense = layers.Dense(3, name="dense")
    wrapped = layers.TimeDistributed(dense) if distributed else dense
    inputs = keras.Input((T, D))
    recurrent = layers.Bidirectional(kind(2, return_sequences=True))
    below = recurrent(layers.Masking()(inputs))
    model = make(inputs, ending(wrapped(below), "examples"))

    def by_hand(hand):
        h = hand.linear(dense, keras.Model(inputs, below)(X), KEEP)
        return ending_by_hand(hand, model, h, "examples")

    check(model, X, "examples", by_hand)


def attention_by_hand(hand, attention, inputs, masks):
    """Returns what multi-head attention returns, [B, T, features].

    Args:
        hand: Takes the rows of the projections.
        attention: The layer.
        inputs: (query, key, value).
        masks: (of the query, of the key, of the value), None for no mask.
    """
    names = ("query", "key", "value")
    projected = []
    for name, x, mask in zip(names, inputs, masks):
        layer = getattr(attention, f"_{name}_dense")
        s = hand.linear(layer, x, mask)
        heads = layer.kernel.shape[1]
        projected.append(tf.reshape(s, [*s.shape[:2], heads, -1]))
    query, key, value = projected
    heads = query.shape[2]
    key, value = (tf.repeat(x, heads // x.shape[2], 2) for x in (key, value))
    scale = np.float32(query.shape[-1] ** -0.5)  # As Keras rounds it.
    scores = float(scale) * tf.einsum("bthk,bshk->bhts", query, key)
    for mask, axis in zip(masks, (-1, -2, -2)):
        if mask is not None:  # Where all is masked, shares are equal.
            mask = np.expand_dims(mask, axis)[:, np.newaxis]
            scores = tf.where(mask, scores, -1e30)
    attended = tf.einsum("bhts,bshv->bthv", tf.nn.softmax(scores), value)
    attended = tf.reshape(attended, [B, T, -1])
    if attention.__dict__.get("_gate_dense"):
        gate = hand.linear(attention._gate_dense, inputs[0], masks[0])
        attended *= tf.sigmoid(gate)
    return hand.linear(attention._output_dense, attended, masks[0])


def check_attention(
    model, attention, x, end, inputs, masks, keep=KEEP, **options
):
    """As `check`, of a model that is one attention layer and its ending."""

    def by_hand(hand):
        h = attention_by_hand(hand, attention, inputs, masks)
        return ending_by_hand(hand, model, h, end, keep)

    check(model, x, end, by_hand, **options)


def multi_head(**options):
    return layers.MultiHeadAttention(2, 3, value_dim=2, **options)


def grouped(**options):
    return layers.GroupQueryAttention(3, 4, 2, **options)


kinds = pytest.mark.parametrize(
    "kind", [multi_head, grouped], ids=["multi-head", "grouped"]
)


@pytest.mark.parametrize(
    ("end", "run_eagerly"),
    [("steps", False), ("examples", False), ("examples", True)],
)
@kinds
def test_self_attention(kind, end, run_eagerly):
    """One mask for all projections."""
    attention = kind()
    inputs = keras.Input((T, D))
    x = layers.Masking()(inputs)
    model = make(inputs, ending(attention(x, x), end))
    check_attention(
        model, attention, X, end, 3 * [X], 3 * [KEEP], run_eagerly=run_eagerly
    )


@kinds
def test_gate(kind):
    """It is of the query, and has its mask."""
    attention = kind(use_gate=True)
    inputs = keras.Input((T, D))
    x = layers.Masking()(inputs)
    model = make(inputs, ending(attention(x, x), "examples"))
    check_attention(model, attention, X, "examples", 3 * [X], 3 * [KEEP])


@pytest.mark.parametrize(
    ("masked", "end"),
    [
        ("both", "steps"),
        ("both", "examples"),
        ("query", "examples"),
        ("key", "examples"),
    ],
)
def test_cross_attention(masked, end):
    """Keys are the values: the rows of either have the values' mask."""
    attention = multi_head()
    inputs = [keras.Input((T, D)), keras.Input((S, D))]
    q, v = inputs
    masks, keep = [None, None, None], np.ones((B, T), bool)
    if masked != "key":
        q, masks[0], keep = layers.Masking()(q), KEEP, KEEP
    if masked != "query":
        v, masks[1:] = layers.Masking()(v), 2 * [KEEP_KEYS]
    model = make(inputs, ending(attention(q, v), end))
    check_attention(
        model, attention, [X, KEYS], end, (X, KEYS, KEYS), masks, keep
    )


@kinds
def test_keys_and_values_with_masks_of_their_own(kind):
    """One is of `Masking`, the other of an embedding."""
    attention = kind()
    inputs = [
        keras.Input((T, D)),
        keras.Input((S, D)),
        keras.Input((S,), dtype="int32"),
    ]
    embedding = layers.Embedding(7, D, mask_zero=True)
    q, k = (layers.Masking()(x) for x in inputs[:2])
    x = attention(q, embedding(inputs[2]), key=k)
    model = make(inputs, ending(x, "examples"))
    values = embedding.get_weights()[0][TOKENS]
    check_attention(
        model,
        attention,
        [X, KEYS, TOKENS],
        "examples",
        (X, KEYS, values),
        (KEEP, KEEP_KEYS, KEEP_TOKENS),
    )


@pytest.mark.parametrize("with_key", [False, True])
@kinds
def test_explicit_masks(kind, with_key):
    """Given as arguments; multi-head attention looks at no `query_mask`."""
    attention = kind()
    arrays = {"value_mask": KEEP_TOKENS}
    masks = [None, KEEP_TOKENS, KEEP_TOKENS]
    if kind is grouped:
        arrays["query_mask"] = masks[0] = KEEP
    if with_key:
        arrays["key_mask"] = masks[1] = KEEP_KEYS
    q, k, v = rows = [RNG.normal(size=(B, n, D)) for n in (T, S, S)]
    inputs = [keras.Input(x.shape[1:]) for x in rows]
    given = {
        name: keras.Input(mask.shape[1:], dtype="bool")
        for name, mask in arrays.items()
    }
    if with_key:
        x = attention(inputs[0], inputs[2], inputs[1], **given)
    else:
        x, k = attention(inputs[0], inputs[2], **given), v
        inputs, rows = inputs[::2], rows[::2]
    model = make([*inputs, *given.values()], ending(x, "examples"))
    check_attention(
        model,
        attention,
        [*rows, *arrays.values()],
        "examples",
        (q, k, v),
        masks,
        run_eagerly=False,
    )


def test_two_calls_of_one_attention():
    """Each has the masks of its own inputs."""
    attention = multi_head()
    inputs = [keras.Input((T, D)), keras.Input((T, D))]
    other = RNG.normal(size=(B, T, D))
    x = layers.Masking()(inputs[0])
    h = layers.Add()([attention(x, x), attention(inputs[1], inputs[1])])
    model = make(inputs, ending(h, "examples"))

    def by_hand(hand):
        h = attention_by_hand(hand, attention, 3 * [X], 3 * [KEEP])
        h += attention_by_hand(hand, attention, 3 * [other], 3 * [None])
        return ending_by_hand(hand, model, h, "examples")

    check(model, [X, other], "examples", by_hand)
