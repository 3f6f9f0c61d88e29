"""The models of `tools.verify`, compiled, with a random batch of their data."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tfkfac
from tools import image_models
from trainers import models

Made = tuple[keras.Model, Any, Any]
VOCABULARY, LENGTH, LATENT = 1000, 32, 16
_RNG = np.random.default_rng(0)
_LOSSES = keras.losses


def _compiled(model: keras.Model) -> keras.Model:
    optimizer = tfkfac.KFAC(0.05, damping=0.03, model=model)
    loss = _LOSSES.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    return model


def lstm(batch_size: int) -> Made:
    """A classifier of texts: two LSTM layers over masked tokens."""
    model = keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            layers.Embedding(VOCABULARY, 32, mask_zero=True),
            layers.LSTM(64, return_sequences=True),
            layers.LSTM(64),
            layers.Dense(4),
        ],
        name="lstm",
    )
    x = _RNG.integers(1, VOCABULARY, (batch_size, LENGTH))
    x[: batch_size // 2, LENGTH // 2 :] = 0
    return _compiled(model), x, _RNG.integers(0, 4, batch_size)


class GAN(keras.Model):
    """Generator and discriminator of digits, each with its own `KFAC`."""

    def __init__(self):
        super().__init__(name="gan")
        self.generator = keras.Sequential(
            [
                keras.Input((LATENT,)),
                layers.Dense(7 * 7 * 16, activation="leaky_relu"),
                layers.Reshape((7, 7, 16)),
                layers.Conv2DTranspose(8, 4, 2, "same", activation="relu"),
                layers.Conv2DTranspose(1, 4, 2, "same", activation="sigmoid"),
            ],
            name="generator",
        )
        self.discriminator = keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                layers.Conv2D(8, 4, 2, "same", activation="leaky_relu"),
                layers.Conv2D(16, 4, 2, "same", activation="leaky_relu"),
                layers.Flatten(),
                layers.Dense(1),
            ],
            name="discriminator",
        )
        self.seed_generator = keras.random.SeedGenerator(0)

    def compile(self, d_optimizer, g_optimizer, loss_fn, **options):
        super().compile(**options)
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer
        self.loss_fn = loss_fn

    def train_step(self, real):
        size = tf.shape(real)[0]

        def latent():
            return keras.random.normal((size, LATENT), seed=self.seed_generator)

        images = tf.concat([self.generator(latent()), real], axis=0)
        labels = tf.concat([tf.ones((size, 1)), tf.zeros((size, 1))], axis=0)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(images))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply(tape.gradient(d_loss, weights), weights)
        with tf.GradientTape() as tape:
            predictions = self.discriminator(self.generator(latent()))
            g_loss = self.loss_fn(tf.zeros((size, 1)), predictions)
        weights = self.generator.trainable_weights
        self.g_optimizer.apply(tape.gradient(g_loss, weights), weights)
        return {"d_loss": d_loss, "g_loss": g_loss}


def gan(batch_size: int) -> Made:
    """A GAN with a training step of its own."""
    model = GAN()
    optimizers = [
        tfkfac.KFAC(0.05, damping=0.03, model=part)
        for part in (model.discriminator, model.generator)
    ]
    model.compile(*optimizers, _LOSSES.BinaryCrossentropy(from_logits=True))
    return model, _RNG.random((batch_size, 28, 28, 1), "float32"), None


def _images(name: str, batch_size: int) -> Made:
    model, shape, classes = image_models.build_model(name)
    x = _RNG.normal(size=(batch_size, *shape)).astype("float32")
    return _compiled(model), x, _RNG.integers(0, classes, batch_size)


def _tokens(name: str, batch_size: int) -> Made:
    model = models.maker(name)(VOCABULARY)
    x, y = _RNG.integers(1, VOCABULARY, (2, batch_size, LENGTH))
    return _compiled(model), x, y


_OTHERS: dict[str, Callable[[int], Made]] = {"lstm": lstm, "gan": gan}


def make(name: str, batch_size: int) -> Made:
    """Returns (model, x, y).

    Raises:
        SystemExit: There is no such model.
    """
    if name in _OTHERS:
        return _OTHERS[name](batch_size)
    if name in models.NAMES:
        return _images(name, batch_size)
    if name in models.LANGUAGE_NAMES:
        return _tokens(name, batch_size)
    known = [*models.NAMES, *models.LANGUAGE_NAMES, *_OTHERS]
    raise SystemExit(f"--model={name}: must be one of {known}.")
