"""A generative adversarial network: two models, an optimizer for each.

    python examples/gan.py

Points on a circle. Nothing is declared: a call of a layer counts if and only if
the gradient that is applied went through it, so that the step of the generator
leaves the curvature of the discriminator alone.

After 20 epochs the points have a radius of 0.92 and a deviation of 0.25, in 8 s
of processor time.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tfkfac

LATENT = 4


def dense(d_in, d_out):
    hidden = [layers.Dense(32, activation="tanh") for _ in range(2)]
    return keras.Sequential(
        [keras.Input((d_in,)), *hidden, layers.Dense(d_out)]
    )


class GAN(keras.Model):
    """Trains a generator and a discriminator against each other."""

    def __init__(self):
        super().__init__()
        self.generator, self.discriminator = dense(LATENT, 2), dense(2, 1)
        self.entropy = keras.losses.BinaryCrossentropy(from_logits=True)

    def compile(self):
        super().compile()
        self.optimizers = {
            part: tfkfac.KFAC(0.02, damping=0.05, kl_clip=1e-3, model=part)
            for part in (self.generator, self.discriminator)
        }

    def update(self, part, tape, loss):
        variables = part.trainable_variables
        gradients = tape.gradient(loss, variables)
        self.optimizers[part].apply(gradients, variables)

    def train_step(self, real):
        latent = tf.random.normal([tf.shape(real)[0], LATENT])
        ones, zeros = tf.ones_like(real[:, :1]), tf.zeros_like(real[:, :1])
        with tf.GradientTape() as tape:
            fake = tf.stop_gradient(self.generator(latent, training=True))
            both = tf.concat([real, fake], axis=0)
            scores = self.discriminator(both, training=True)
            of_critic = self.entropy(tf.concat([ones, zeros], 0), scores)
        self.update(self.discriminator, tape, of_critic)
        with tf.GradientTape() as tape:
            fake = self.generator(latent, training=True)
            of_fake = self.discriminator(fake, training=True)
            of_generator = self.entropy(ones, of_fake)
        self.update(self.generator, tape, of_generator)
        return {"discriminator": of_critic, "generator": of_generator}


def main(epochs=20):
    keras.utils.set_random_seed(0)
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 1024)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    gan = GAN()
    gan.compile()
    gan.fit(points.astype("float32"), batch_size=128, epochs=epochs, verbose=2)
    made = gan.generator(np.random.normal(size=(500, LATENT)))
    radii = np.linalg.norm(made, axis=1)
    return {"radius": float(radii.mean()), "deviation": float(radii.std())}


if __name__ == "__main__":
    print(main())
