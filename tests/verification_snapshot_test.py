"""After `verify` all is as before, bit for bit."""

import random

import classifier
import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tfkfac
from tfkfac.verification import snapshot

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
