"""Published generative programs: GAN, WGAN-GP, VAE."""

import keras
import numpy as np
import programs
import pytest
import tensorflow as tf
from keras import layers, ops
from programs import BATCH, SEED, ByHand, Program

LATENT, FEATURES = 3, 5
REAL = programs.normal(BATCH, FEATURES) + 1
IMAGES = 1 / (1 + abs(programs.normal(BATCH, 4, 4, 1)))
CROSS_ENTROPY = keras.losses.BinaryCrossentropy(from_logits=True)


class GAN(keras.Model):
    """As in "DCGAN to generate face images"."""

    def __init__(self, separately):
        super().__init__()
        self.separately = separately
        self.discriminator = programs.network(
            "discriminator", FEATURES, 6, 1, "leaky_relu"
        )
        self.generator = programs.network("generator", LATENT, 4, FEATURES)
        self.seed_generator = keras.random.SeedGenerator(SEED)

    def compile(self, d_optimizer, g_optimizer, loss_fn, **options):
        super().compile(**options)
        self.d_optimizer = d_optimizer
        self.g_optimizer = g_optimizer
        self.loss_fn = loss_fn
        self.d_loss_metric = keras.metrics.Mean(name="d_loss")
        self.g_loss_metric = keras.metrics.Mean(name="g_loss")

    @property
    def metrics(self):
        return [self.d_loss_metric, self.g_loss_metric]

    def train_step(self, real):
        size = ops.shape(real)[0]
        latent = keras.random.normal((size, LATENT), seed=self.seed_generator)
        generated = self.generator(latent)
        labels = ops.concatenate([ops.ones((size, 1)), ops.zeros((size, 1))])
        labels += 0.05 * keras.random.uniform(
            ops.shape(labels), seed=self.seed_generator
        )
        with tf.GradientTape() as tape:
            if self.separately:
                d_loss = self.loss_fn(labels[size:], self.discriminator(real))
                d_loss += self.loss_fn(
                    labels[:size], self.discriminator(generated)
                )
            else:
                combined = ops.concatenate([generated, real], axis=0)
                d_loss = self.loss_fn(labels, self.discriminator(combined))
        weights = self.discriminator.trainable_weights
        gradients = tape.gradient(d_loss, weights)
        self.d_optimizer.apply_gradients(zip(gradients, weights))

        latent = keras.random.normal((size, LATENT), seed=self.seed_generator)
        misleading = ops.zeros((size, 1))
        with tf.GradientTape() as tape:
            predictions = self.discriminator(self.generator(latent))
            g_loss = self.loss_fn(misleading, predictions)
        weights = self.generator.trainable_weights
        gradients = tape.gradient(g_loss, weights)
        self.g_optimizer.apply_gradients(zip(gradients, weights))

        self.d_loss_metric.update_state(d_loss)
        self.g_loss_metric.update_state(g_loss)
        return {
            "d_loss": self.d_loss_metric.result(),
            "g_loss": self.g_loss_metric.result(),
        }


def cross_entropy(labels, logits):
    labels = tf.cast(labels, tf.float64)
    return tf.reduce_mean(
        tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
    )


def gan(make, eager, separately=False):
    model = GAN(separately)
    models = {"d_loss": model.discriminator, "g_loss": model.generator}
    optimizers = {name: make(model) for name, model in models.items()}
    model.compile(*optimizers.values(), CROSS_ENTROPY, run_eagerly=eager)

    def by_hand():
        seed = programs.replica(model.seed_generator)
        shape = BATCH, LATENT
        latent = keras.random.normal(shape, seed=seed)
        noise = keras.random.uniform((2 * BATCH, 1), seed=seed)
        labels = 0.05 * noise + np.repeat([[1.0], [0.0]], BATCH, 0)
        fake = programs.forward(model.generator, latent)
        d, g = ByHand(), ByHand()
        with d.tape:
            p_fake = d.chain(model.discriminator, fake)
            p_real = d.chain(model.discriminator, REAL)
            d_loss = cross_entropy(labels, tf.concat([p_fake, p_real], 0))
            if separately:  # A sum of two means.
                d_loss *= 2
        latent = keras.random.normal(shape, seed=seed)
        with g.tape:
            fake = g.chain(model.generator, latent)
            p_fake = programs.forward(model.discriminator, fake)
            g_loss = cross_entropy(tf.zeros_like(p_fake), p_fake)
        return {
            "d_loss": d.close(d_loss, 2 * BATCH),
            "g_loss": g.close(g_loss, BATCH),
        }

    return Program(optimizers, models, programs.fits(model, REAL), by_hand)


def gan_separately(make, eager):
    return gan(make, eager, separately=True)


class WGAN(keras.Model):
    """As in "WGAN-GP overriding Model.train_step"."""

    def __init__(self):
        super().__init__()
        self.discriminator = programs.network("critic", FEATURES, 6, 1)
        self.generator = programs.network("generator", LATENT, 4, FEATURES)
        self.d_steps, self.gp_weight = 3, 10.0
        self.seed_generator = keras.random.SeedGenerator(SEED)

    def compile(self, d_optimizer, g_optimizer, **options):
        super().compile(**options)
        self.d_optimizer = d_optimizer
        self.g_optimizer = g_optimizer

    def gradient_penalty(self, size, real, fake):
        alpha = keras.random.uniform((size, 1), seed=self.seed_generator)
        interpolated = real + alpha * (fake - real)
        with tf.GradientTape() as tape:
            tape.watch(interpolated)
            prediction = self.discriminator(interpolated, training=True)
        gradient = tape.gradient(prediction, [interpolated])[0]
        norm = tf.sqrt(tf.reduce_sum(tf.square(gradient), axis=1))
        return tf.reduce_mean((norm - 1.0) ** 2)

    def latent(self, size):
        return keras.random.normal((size, LATENT), seed=self.seed_generator)

    def train_step(self, real):
        size = tf.shape(real)[0]
        for _ in range(self.d_steps):
            latent = self.latent(size)
            with tf.GradientTape() as tape:
                fake = self.generator(latent, training=True)
                fake_logits = self.discriminator(fake, training=True)
                real_logits = self.discriminator(real, training=True)
                d_cost = tf.reduce_mean(fake_logits)
                d_cost -= tf.reduce_mean(real_logits)
                penalty = self.gradient_penalty(size, real, fake)
                d_loss = d_cost + penalty * self.gp_weight
            variables = self.discriminator.trainable_variables
            gradients = tape.gradient(d_loss, variables)
            self.d_optimizer.apply_gradients(zip(gradients, variables))

        latent = self.latent(size)
        with tf.GradientTape() as tape:
            fake = self.generator(latent, training=True)
            logits = self.discriminator(fake, training=True)
            g_loss = -tf.reduce_mean(logits)
        variables = self.generator.trainable_variables
        gradients = tape.gradient(g_loss, variables)
        self.g_optimizer.apply_gradients(zip(gradients, variables))
        return {"d_loss": d_loss, "g_loss": g_loss}


def wgan_gp(make, eager):
    model = WGAN()
    models = {"d_loss": model.discriminator, "g_loss": model.generator}
    optimizers = {name: make(model) for name, model in models.items()}
    model.compile(*optimizers.values(), run_eagerly=eager)

    def by_hand():
        """Returns the last step of the critic, and that of the generator."""
        seed = programs.replica(model.seed_generator)
        critic = model.discriminator
        real = tf.cast(REAL, tf.float64)
        for _ in range(model.d_steps):
            latent = keras.random.normal((BATCH, LATENT), seed=seed)
            alpha = keras.random.uniform((BATCH, 1), seed=seed)
        fake = programs.forward(model.generator, latent)
        between = real + tf.cast(alpha, tf.float64) * (fake - real)
        d, g = ByHand(), ByHand()
        with d.tape:
            d_loss = tf.reduce_mean(d.chain(critic, fake))
            d_loss -= tf.reduce_mean(d.chain(critic, real))
            with tf.GradientTape() as inner:
                inner.watch(between)
                prediction = d.chain(critic, between)
            norm = tf.norm(inner.gradient(prediction, between), axis=1)
            d_loss += 10 * tf.reduce_mean((norm - 1) ** 2)
        latent = keras.random.normal((BATCH, LATENT), seed=seed)
        with g.tape:
            fake = g.chain(model.generator, latent)
            g_loss = -tf.reduce_mean(programs.forward(critic, fake))
        return {
            "d_loss": d.close(d_loss, 3 * BATCH),
            "g_loss": g.close(g_loss, BATCH),
        }

    return Program(optimizers, models, programs.fits(model, REAL), by_hand)


class Sampling(layers.Layer):
    """z = mean + exp(log_var / 2) epsilon."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seed_generator = keras.random.SeedGenerator(SEED)

    def call(self, inputs):
        mean, log_var = inputs
        epsilon = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_var) * epsilon


class VAE(keras.Model):
    """As in "Variational AutoEncoder"; it has no `call`.

    The encoder's last layer is `Sampling`, or the training step calls it.
    """

    def __init__(self, inside):
        super().__init__()
        inputs = keras.Input((4, 4, 1))
        x = layers.Flatten()(inputs)
        x = layers.Dense(6, activation="relu", name="hidden")(x)
        outputs = [
            layers.Dense(LATENT, name="mean")(x),
            layers.Dense(LATENT, name="log_var")(x),
        ]
        self.sampling = Sampling()
        if inside:
            outputs.append(self.sampling(outputs))
        self.inside = inside
        self.encoder = keras.Model(inputs, outputs, name="encoder")
        self.decoder = programs.network(
            "decoder", LATENT, 7, 16, "relu", last="sigmoid"
        )
        self.decoder.add(layers.Reshape((4, 4, 1)))
        self.loss_tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.loss_tracker]

    def train_step(self, data):
        with tf.GradientTape() as tape:
            if self.inside:
                mean, log_var, z = self.encoder(data)
            else:
                mean, log_var = self.encoder(data)
                z = self.sampling([mean, log_var])
            reconstruction = self.decoder(z)
            terms = keras.losses.binary_crossentropy(data, reconstruction)
            loss = ops.mean(ops.sum(terms, axis=(1, 2)))
            kl = -0.5 * (1 + log_var - ops.square(mean) - ops.exp(log_var))
            loss += ops.mean(ops.sum(kl, axis=1))
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights))
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}


def vae(make, eager, inside=True):
    model = VAE(inside)
    optimizer = make(model)
    model.compile(optimizer=optimizer, run_eagerly=eager)

    def by_hand():
        v = ByHand()
        epsilon = keras.random.normal(
            (BATCH, LATENT),
            seed=programs.replica(model.sampling.seed_generator),
        )
        x = tf.cast(IMAGES.reshape(BATCH, -1), tf.float64)
        with v.tape:
            layer = model.encoder.get_layer
            h = v.linear("encoder/hidden", layer("hidden"), x)
            mean = v.linear("encoder/mean", layer("mean"), h)
            log_var = v.linear("encoder/log_var", layer("log_var"), h)
            z = mean + tf.exp(log_var / 2) * tf.cast(epsilon, tf.float64)
            p = v.chain(model.decoder, z, "decoder/")
            p = tf.reshape(p, [BATCH, -1])
            terms = x * tf.math.log(p) + (1 - x) * tf.math.log(1 - p)
            kl = (tf.exp(log_var) + mean**2 - 1 - log_var) / 2
            loss = tf.reduce_sum(kl) - tf.reduce_sum(terms)
            loss /= BATCH
        return {"loss": v.close(loss, BATCH)}

    return Program(
        {"loss": optimizer},
        {"loss": model},
        programs.fits(model, IMAGES),
        by_hand,
    )


def vae_sampling_outside(make, eager):
    return vae(make, eager, inside=False)


PROGRAMS = [gan, gan_separately, wgan_gp, vae, vae_sampling_outside]
each_program = pytest.mark.parametrize("program", PROGRAMS)


@each_program
def test_computation_by_hand(program):
    programs.check_by_hand(program)


@each_program
def test_factors_by_default_in_a_graph(program):
    programs.check_factors(program, eager=False)


@each_program
def test_empirical_factors_eagerly(program):
    programs.check_factors(program, eager=True, fisher="empirical")


@each_program
def test_trains(program):
    programs.check_trains(program)
