"""Rows that a mask masks are left out of A and G, below wrappers too."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from masked import (
    KEEP,
    PAIRS,
    RNG,
    B,
    D,
    S,
    T,
    X,
    check,
    ending,
    ending_by_hand,
    ends,
    make,
    modes,
    step,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not support mask.*"),
    pytest.mark.usefixtures("float64"),
]


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
