"""Rows that a mask masks are left out of the projections of attention."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from masked import (
    KEEP,
    KEEP_KEYS,
    KEEP_TOKENS,
    KEYS,
    RNG,
    TOKENS,
    B,
    D,
    S,
    T,
    X,
    check,
    ending,
    ending_by_hand,
    make,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not support mask.*"),
    pytest.mark.usefixtures("float64"),
]


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
