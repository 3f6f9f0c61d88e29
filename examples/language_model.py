"""A small Transformer with tied embeddings, on the text of Python's modules.

    python examples/language_model.py

Characters of a few modules of the standard library; the embedding is also the
projection to the logits, and has one curvature block for both of its uses.

The loss falls from 2.55 in the first epoch to 2.04 in the second, in 11 s of
processor time (uniform guesses: 4.85).
"""

import argparse
import inspect
import textwrap

import keras
import numpy as np
from keras import layers, ops

import tfkfac

LENGTH, WIDTH = 32, 32


def data():
    """Returns windows of characters, and the characters that follow."""
    text = inspect.getsource(argparse) + inspect.getsource(textwrap)
    codes = np.frombuffer(text.encode("ascii", "ignore"), "uint8") % 128
    count = (len(codes) - 1) // LENGTH
    windows = codes[: count * LENGTH].reshape(count, LENGTH)
    following = codes[1 : count * LENGTH + 1].reshape(count, LENGTH)
    return windows.astype("int32"), following.astype("int32")


def network():
    """Returns a model of one Transformer block, [batch, length] to logits."""
    tokens = keras.Input((LENGTH,), dtype="int32")
    embedding = layers.ReversibleEmbedding(128, WIDTH)
    places = layers.Embedding(LENGTH, WIDTH)
    x = embedding(tokens) + places(ops.arange(LENGTH))
    y = layers.LayerNormalization()(x)
    attention = layers.MultiHeadAttention(2, WIDTH // 2)
    x = x + attention(y, y, use_causal_mask=True)
    y = layers.LayerNormalization()(x)
    y = layers.Dense(WIDTH, activation="gelu")(y)
    x = layers.LayerNormalization()(x + layers.Dense(WIDTH)(y))
    return keras.Model(tokens, embedding(x, reverse=True))


def main(epochs=2):
    keras.utils.set_random_seed(0)
    x, y = data()
    model = network()
    model.compile(
        tfkfac.KFAC(tied="pooled", model=model),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.optimizer.summary()
    history = model.fit(x, y, batch_size=64, epochs=epochs, verbose=2).history
    return {"first": history["loss"][0], "last": history["loss"][-1]}


if __name__ == "__main__":
    print(main())
