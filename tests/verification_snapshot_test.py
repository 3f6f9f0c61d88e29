"""After `verify` all is as before, bit for bit."""

import random

import classifier
import keras
import numpy as np
import pytest
import tensorflow as tf
import verified
from keras import layers

import tfkfac
from tfkfac.verification import snapshot

pytestmark = pytest.mark.usefixtures("seeded_kernels")

X, Y = classifier.X, classifier.Y


def model():
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(2)
    net = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, activation="tanh"),
            layers.BatchNormalization(),
            layers.Dropout(0.4),
            layers.Dense(3),
        ]
    )
    settings = {"metrics": ["accuracy"], "run_eagerly": True}
    net, _ = classifier.compiled(
        net, compile_settings=settings, use_ema=True, refresh="drift"
    )
    net.train_on_batch(X, Y)
    return net


def state(net):
    variables = net.variables + net.metrics_variables + net.optimizer.variables
    return [keras.ops.convert_to_numpy(v) for v in variables]


def seed():
    tf.random.set_seed(3)
    tf.random.set_global_generator(tf.random.Generator.from_seed(3))


def draws():
    return [
        random.random(),
        np.random.rand(),
        float(tf.random.uniform([])),
        float(tf.random.get_global_generator().uniform([])),
        float(keras.random.uniform(())),  # Keras' global generator.
    ]


def test_a_verified_model_trains_on_as_if_it_were_not():
    plain = model()
    expected = state(plain)
    seed()
    following = draws()
    plain.train_on_batch(X, Y)
    net = model()
    seed()
    fisher, scale = net.optimizer.fisher, net.optimizer.loss_scale_factor
    assert tfkfac.verify(net, X, Y, graph=True).ok
    for before, after in zip(expected, state(net), strict=True):
        np.testing.assert_array_equal(before, after)
    assert draws() == following
    assert net.optimizer.fisher == fisher
    assert net.optimizer.loss_scale_factor == scale
    net.train_on_batch(X, Y)
    for before, after in zip(state(plain), state(net), strict=True):
        np.testing.assert_array_equal(before, after)


def test_keras_global_seed_is_put_back():
    net = model()
    keras.random.uniform(())  # Makes the generator.
    taken = snapshot.Snapshot(net, [])
    first = float(keras.random.uniform(()))
    taken.restore()
    assert float(keras.random.uniform(())) == first


def test_state_of_a_layer_of_ones_own_begins_as_without_verify():
    """Its blocks are made in the first step."""

    class Own(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 3))

        def call(self, x):
            return tf.matmul(x, self.kernel)

    net = keras.Sequential([keras.Input((4,)), Own(name="own")])
    net, optimizer = classifier.compiled(net)
    assert tfkfac.verify(net, X, Y, graph=False).ok
    own = optimizer.curvature.state()
    assert not own["own/kernel/input_factor/weight"].any()
    assert not own["own/kernel/input_factor/moment"].any()
    assert own["refresh_needed"]


class GAN(keras.Model):
    """Its discriminator has `KFAC`, its generator Adam."""

    def __init__(self):
        super().__init__()
        self.discriminator = classifier.small("discriminator")
        self.generator = keras.Sequential([keras.Input((2,)), layers.Dense(4)])

    def compile(self, d_optimizer, g_optimizer):
        super().compile(run_eagerly=True)
        self.d_optimizer = d_optimizer
        self.optimizers = {"generator": g_optimizer}

    def call(self, x):
        return self.discriminator(x)

    @tf.function
    def _d_step(self, x, y):
        with tf.GradientTape() as tape:
            loss = classifier.LOSS(y, self.discriminator(x))
        weights = self.discriminator.trainable_variables
        self.d_optimizer.apply(tape.gradient(loss, weights), weights)
        return loss

    def train_step(self, data):
        x, y = data[:2]
        weights = self.generator.trainable_variables
        with tf.GradientTape() as tape:
            made = self.generator(x[:, :2])
            loss = classifier.LOSS(0 * y, self.discriminator(made))
        optimizer = self.optimizers["generator"]
        optimizer.apply(tape.gradient(loss, weights), weights)
        return {"d": self._d_step(x, y), "g": loss}


def gan(built):
    keras.utils.set_random_seed(2)
    net, adam = GAN(), keras.optimizers.Adam(0.1)
    net.compile(tfkfac.KFAC(0.1, model=net.discriminator), adam)
    net(X)
    if built:
        net.train_on_batch(X, Y)
    return net, adam


@pytest.mark.parametrize("built", [True, False])
def test_optimizers_that_are_not_kfac_begin_as_without_verify(built):
    """Here a helper of the training step is a tf.function, too."""
    (net, adam), (plain, other) = gan(built), gan(built)
    report = tfkfac.verify(net, X, Y, graph=not built)
    assert report.ok, str(report)
    assert int(adam.iterations) == int(built)
    assert adam.built and "build" not in vars(adam)
    net.train_on_batch(X, Y)
    plain.train_on_batch(X, Y)
    for a, b in zip(adam.variables, other.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(net.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_optimizers_that_a_step_of_ones_own_holds():
    inner, second = keras.optimizers.Adam(0.1), keras.optimizers.SGD(0.1)
    outer = keras.optimizers.LossScaleOptimizer(inner)
    closed = [second]

    class Trainer:
        optimizer = None

        def step(self, data):
            return data, closed, self.optimizer

    trainer = Trainer()
    trainer.optimizer = outer
    found = snapshot._optimizers(classifier.small(), trainer.step)
    assert {id(o) for o in found} == {id(o) for o in (inner, outer, second)}
    step = tf.function(trainer.step)
    found = snapshot._optimizers(classifier.small(), step)
    assert {id(o) for o in found} == {id(o) for o in (inner, outer, second)}


@pytest.mark.parametrize("begun", [True, False])
def test_what_steps_note_for_a_callback_is_put_back(begun):
    net, optimizer = classifier.compiled()
    attached = optimizer.require_attached()
    if begun:
        attached.is_watched = True
        net.train_on_batch(X, Y)
        before = [v.numpy() for v in attached.readings.variables]
    attached.is_watched = True
    assert verified.first_step(net, X, Y).ok
    after = [v.numpy() for v in attached.readings.variables]
    if begun:
        for a, b in zip(before, after, strict=True):
            np.testing.assert_array_equal(a, b)
    assert attached.readings.read_counts()[0] == int(begun)
