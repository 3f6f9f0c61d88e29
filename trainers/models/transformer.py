"""The Transformer as a language model."""

import math
from collections.abc import Callable
from functools import partial

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="trainers")
class SinusoidalPositions(layers.Layer):
    """scale x + P, with P of the positions t (Vaswani et al. 2017, 3.5).

        P[t, 2i] = sin(t / 10000^(2i / d)),  P[t, 2i + 1] = cos(the same)

    for inputs x of shape [batch, time, d]. It has no weights.

    Args:
        scale: What the inputs are multiplied by.
    """

    def __init__(self, *, scale: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = float(scale)
        self.supports_masking = True

    def build(self, input_shape):
        if input_shape[-1] % 2:
            raise ValueError(
                f"{self.name}: the last axis must be even, not "
                f"{input_shape[-1]}."
            )

    def call(self, inputs):
        _, time, d = ops.shape(inputs)
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        t = ops.arange(time, dtype=dtype)
        i = ops.arange(d // 2, dtype=dtype)
        angles = t[:, None] * ops.power(10000.0, -2.0 * i / d)
        P = ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1)
        P = ops.cast(ops.reshape(P, (time, d)), inputs.dtype)
        return self.scale * inputs + P

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable(package="trainers")
class MaskLike(layers.Layer):
    """Gives the first of its two inputs the Keras mask of the second."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs):
        return inputs[0]

    def compute_mask(self, inputs, previous_mask):
        return previous_mask[1]


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
