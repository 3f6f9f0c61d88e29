"""Models of a few layers that plans are made of."""

import keras
import tensorflow as tf
from keras import layers

from trainers.models.transformer import transformer

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def dense():
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4, activation="relu", name="first"),
            layers.Dense(3, use_bias=False, name="second"),
        ]
    )


def equal():
    return keras.Sequential(
        [keras.Input((6,)), *(layers.Dense(6) for _ in range(4))]
    )


def convolutional():
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, padding="same", name="wide"),
            layers.BatchNormalization(),
            layers.SeparableConv2D(6, 3),
            layers.GroupNormalization(2),
            layers.Conv2D(4, 1, groups=2, use_bias=False, name="grouped"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def tokens():
    return transformer(200, blocks=1, width=8, heads=2, hidden=12)


TOKENS = tf.TensorSpec([None, 6], "int32")
