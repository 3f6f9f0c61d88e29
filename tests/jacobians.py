"""Models, and their Jacobians as matrices."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfkfac.analysis import noise, spectra

LOSSES = keras.losses


def categorical():
    """Made within a test, in the type of its numbers."""
    return LOSSES.SparseCategoricalCrossentropy(from_logits=True)


def jacobian(model, x, outputs=lambda y: y):
    """d outputs / d theta, [*outputs, P], theta in the model's order."""
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        y = outputs(model(x, training=False))
    parts = tape.jacobian(
        y,
        variables,
        unconnected_gradients="zero",
        experimental_use_pfor=False,
    )
    flat = [np.reshape(p, [*y.shape, -1]) for p in parts]
    return np.concatenate(flat, axis=-1)


def vector(model, direction):
    """A direction as a vector in the order of theta."""
    (block,) = [
        b for b in spectra.known_blocks(model) if b.path == direction.layer
    ]
    parts = noise.tangents(direction, block, model)
    return np.concatenate([np.ravel(p) for p in parts])


def images():
    """A convolution, a normalization and a dense layer; and dropout."""
    inputs = keras.Input((4, 4, 2))
    h = layers.Conv2D(3, 2, activation="tanh", name="conv")(inputs)
    h = layers.BatchNormalization(name="norm")(h)
    h = layers.Dropout(0.5)(layers.Flatten()(h))
    return keras.Model(inputs, layers.Dense(3, name="logits")(h))


def softmax_hessian(p):
    return np.einsum("nk,kl->nkl", p, np.eye(3)) - p[:, :, None] * p[:, None]


def of_logits(y):
    return softmax_hessian(np.array(tf.nn.softmax(y)))
