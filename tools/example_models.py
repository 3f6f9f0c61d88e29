"""Small models of the kinds that Keras' published examples train."""

from collections.abc import Callable

import keras
from keras import layers, ops


def _convolved(x, filters, **options):
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, **options)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def _raised(x, filters, **options):
    x = layers.Conv2DTranspose(
        filters, 3, strides=2, padding="same", **options
    )(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def unet() -> keras.Model:
    """Two scales down by strides, and up by transposed convolutions."""
    inputs = keras.Input((32, 32, 3))
    x, kept = inputs, []
    for filters in (16, 32):
        kept.append(_convolved(x, filters))
        x = _convolved(kept[-1], filters, strides=2)
    x = _convolved(x, 64)
    for filters in (32, 16):
        x = layers.Concatenate()([_raised(x, filters), kept.pop()])
        x = _convolved(x, filters)
    return keras.Model(inputs, layers.Conv2D(4, 1)(x))


def autoencoder() -> keras.Model:
    """Of images: convolutions and pooling, then transposed convolutions."""
    inputs = x = keras.Input((28, 28, 1))
    for _ in range(2):
        x = layers.Conv2D(32, 3, activation="relu", padding="same")(x)
        x = layers.MaxPooling2D(2)(x)
    for _ in range(2):
        x = layers.Conv2DTranspose(
            32, 3, strides=2, activation="relu", padding="same"
        )(x)
    return keras.Model(inputs, layers.Conv2D(1, 3, padding="same")(x))


def generator() -> keras.Model:
    """That of a GAN: a dense layer, then transposed convolutions."""
    inputs = keras.Input((128,))
    x = layers.Dense(7 * 7 * 128)(inputs)
    x = layers.Reshape((7, 7, 128))(layers.LeakyReLU()(x))
    for _ in range(2):
        x = layers.Conv2DTranspose(128, 4, strides=2, padding="same")(x)
        x = layers.LeakyReLU()(x)
    return keras.Model(inputs, layers.Conv2D(1, 7, padding="same")(x))


def translator() -> keras.Model:
    """LSTM encoder and decoder, from characters to characters."""
    source, target = keras.Input((None, 71)), keras.Input((None, 94))
    _, *state = layers.LSTM(64, return_state=True)(source)
    x = layers.LSTM(64, return_sequences=True)(target, initial_state=state)
    return keras.Model([source, target], layers.Dense(94)(x))


def gated() -> keras.Model:
    """A bidirectional GRU over tokens."""
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(2000, 32)(inputs)
    x = layers.Bidirectional(layers.GRU(32))(x)
    return keras.Model(inputs, layers.Dense(1)(x))


def frames() -> keras.Model:
    """The next frame of a film, by a recurrent convolution."""
    inputs = keras.Input((None, 16, 16, 1))
    x = layers.ConvLSTM2D(8, 3, padding="same", return_sequences=True)(inputs)
    x = layers.BatchNormalization()(x)
    return keras.Model(inputs, layers.Conv3D(1, 3, padding="same")(x))


def text_classifier() -> keras.Model:
    """One Transformer block on token and position embeddings."""
    inputs = keras.Input((100,), dtype="int32")
    positions = layers.Embedding(100, 32)(ops.arange(100))
    x = layers.Embedding(5000, 32)(inputs) + positions
    attended = layers.MultiHeadAttention(2, 32)(x, x)
    x = layers.LayerNormalization()(x + attended)
    wide = layers.Dense(32)(layers.Dense(32, activation="relu")(x))
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x + wide))
    x = layers.Dense(20, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(2)(x))


def factorization() -> keras.Model:
    """Of a matrix of ratings: embeddings of users and films."""
    pair = keras.Input((2,), dtype="int32")
    users, films = layers.Embedding(600, 50), layers.Embedding(9700, 50)
    biases = [layers.Embedding(n, 1) for n in (600, 9700)]
    score = layers.Dot(1)([users(pair[:, 0]), films(pair[:, 1])])
    score += biases[0](pair[:, 0]) + biases[1](pair[:, 1])
    return keras.Model(pair, score)


class GraphAttention(layers.Layer):
    """Attention over all nodes; its kernels are its own variables."""

    def __init__(self, units: int, **arguments):
        super().__init__(**arguments)
        self.units = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units))
        self.attention = self.add_weight(shape=(2, self.units))
        super().build(shape)

    def call(self, inputs):
        h = ops.matmul(inputs, self.kernel)
        pairs = ops.matmul(h, ops.transpose(self.attention))
        to = ops.swapaxes(pairs[..., 1:], -1, -2)
        scores = ops.leaky_relu(pairs[..., :1] + to)
        return ops.relu(ops.matmul(ops.softmax(scores), h))


def graph_attention() -> keras.Model:
    """Of papers that cite each other."""
    inputs = x = keras.Input((20, 143))
    for _ in range(2):
        x = GraphAttention(100)(layers.Dense(100, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(7)(x))


def vocabulary_head() -> keras.Model:
    """Of 20,000 words, which are more than a factor may have."""
    inputs = keras.Input((32,), dtype="int32")
    x = layers.Dense(64, activation="relu")(layers.Embedding(20000, 16)(inputs))
    return keras.Model(inputs, layers.Dense(20000)(x))


MODELS: dict[str, Callable[[], keras.Model]] = {
    f.__name__: f
    for f in (
        unet,
        autoencoder,
        generator,
        translator,
        gated,
        frames,
        text_classifier,
        factorization,
        graph_attention,
        vocabulary_head,
    )
}
