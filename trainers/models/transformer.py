"""The Transformer as a language model."""

import math
from collections.abc import Callable
from functools import partial

import keras
from keras import layers

from trainers.layers import MaskLike, SinusoidalPositions


def transformer(
    vocabulary: int = 32768,
    *,
    blocks: int = 2,
    width: int = 512,
    heads: int = 8,
    hidden: int = 2048,
    dropout: float = 0.1,
    mask_padding: bool = False,
    name: str = "transformer",
) -> keras.Model:
    """Returns a causal Transformer from tokens to the logits of the next ones.

    The "base" model of Vaswani et al. 2017 with two blocks, as in Zhang et al.
    2019, appendix F.2: self-attention and a feed-forward part, normalized after
    each residual connection; one matrix, times sqrt(width) at the input,
    embeds the tokens and gives the logits; positions as sines and cosines.

    23,081,984 parameters as it is: 16,777,216 in the embedding and 3,152,384
    in each block.

    Args:
        vocabulary: The number of tokens.
        blocks: The number of blocks.
        width: The size of the embeddings.
        heads: The number of attention heads; it divides the width.
        hidden: The size of the hidden layer of the feed-forward parts.
        dropout: The rate, after the embedding and before each addition.
        mask_padding: Whether token 0 is padding, masked up to the loss.
        name: The name of the model.

    Raises:
        ValueError: The heads do not divide the width.
    """
    if width % heads:
        raise ValueError(f"heads={heads}: must divide width={width}.")
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    embedding = layers.ReversibleEmbedding(
        vocabulary,
        width,
        embeddings_initializer=keras.initializers.RandomNormal(
            stddev=width**-0.5
        ),
        mask_zero=mask_padding,
        name="embedding",
    )

    def add(x, change, name):
        change = layers.Dropout(dropout, name=f"{name}_dropout")(change)
        x = layers.Add(name=f"{name}_sum")([x, change])
        if mask_padding:  # Attention takes the mask off its input.
            x = MaskLike(name=f"{name}_mask")([x, change])
        return layers.LayerNormalization(
            epsilon=1e-6, name=f"{name}_normalization"
        )(x)

    x = SinusoidalPositions(scale=math.sqrt(width), name="positions")(
        embedding(tokens)
    )
    x = layers.Dropout(dropout, name="dropout")(x)
    for i in range(1, blocks + 1):
        attended = layers.MultiHeadAttention(
            heads, width // heads, name=f"block_{i}_attention"
        )(x, x, use_causal_mask=True)
        x = add(x, attended, f"block_{i}_attention")
        change = layers.Dense(
            hidden, activation="relu", name=f"block_{i}_hidden"
        )(x)
        change = layers.Dense(width, name=f"block_{i}_output")(change)
        x = add(x, change, f"block_{i}_output")
    logits = embedding(x, reverse=True)
    if mask_padding:
        logits = MaskLike(name="logits")([logits, x])
    return keras.Model(tokens, logits, name=name)


# By the name that --model gives them.
MODELS: dict[str, Callable[..., keras.Model]] = {
    "transformer": transformer,
    "small_transformer": partial(
        transformer, width=64, heads=4, hidden=256, name="small_transformer"
    ),
}
