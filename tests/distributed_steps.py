"""Training steps of one's own on two ranks, and on one on the joint batch.

    horovodrun -np 2 python tests/distributed_ranks.py folder distributed_steps

Each check trains a model twice: on this rank's examples, and alone on those of
all ranks. The weights come to the same.
"""

import logging

import keras
import numpy as np
import tensorflow as tf
from distributed_ranks import RANK, RANKS, alone, equal_on_all_ranks
from keras import layers

import tfkfac

SIZE = 4 + 4 * RANK  # Ranks have shares of different sizes.
RNG = np.random.default_rng(RANK)
OWN = {
    "x": RNG.normal(size=(SIZE, 6)).astype("float32"),
    "y": RNG.normal(size=(SIZE, 3)).astype("float32"),
    "classes": RNG.integers(0, 3, SIZE),
    "noise": RNG.normal(size=(SIZE, 2)).astype("float32"),
}
EVERY = RANKS.gather_objects(OWN)
JOINT = {k: np.concatenate([of_rank[k] for of_rank in EVERY]) for k in OWN}
assert len(JOINT["x"]) > SIZE


def network(inputs, hidden, outputs, **options):
    return keras.Sequential(
        [
            keras.Input((inputs,)),
            layers.Dense(hidden, "tanh", name="hidden"),
            layers.Dense(outputs, name="out"),
        ],
        **options,
    )


def kfac(model, **options):
    options = {"fisher": "empirical", **options}
    return tfkfac.KFAC(
        0.05, damping=0.1, inverse_update_period=2, model=model, **options
    )


def compare(train, rtol=1e-4):
    """`train(data)` returns models; those of both runs have equal weights.

    Of one process steps are eager, as its graphs would take longer.
    """
    found = []
    for data in (OWN, JOINT):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        if data is OWN:
            models = train(data)
        else:
            with alone():
                models = train(data)
        weights = [v.numpy().ravel() for m in models for v in m.weights]
        found.append(np.concatenate(weights))
    assert equal_on_all_ranks(found[0])
    np.testing.assert_allclose(*found, rtol=rtol, atol=1e-5)


def trained(model, optimizer, loss_of, data, eager, times=4):
    def step():
        with tf.GradientTape() as tape:
            loss = loss_of(data)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    step = step if eager or data is JOINT else tf.function(step)
    for _ in range(times):
        step()
    return [model]


def check_two_calls_of_the_model(folder):
    """In the step of one update; of both Fishers, in a graph and eagerly."""
    sampled = {"fisher": "sampled", "likelihood": tfkfac.Gaussian()}
    for eager, options in ((False, {}), (True, sampled)):

        def train(data, eager=eager, options=options):
            model = network(6, 5, 3)

            def loss_of(data):
                p = model(data["x"], training=True)
                loss = tf.reduce_mean((p - data["y"]) ** 2)
                p = model(-2 * data["x"], training=True)
                return loss + tf.reduce_mean((p + data["y"]) ** 2)

            optimizer = kfac(model, **options)
            return trained(model, optimizer, loss_of, data, eager)

        compare(train)


class Parts(keras.Model):
    def __init__(self):
        super().__init__()
        self.e = keras.Sequential(
            [keras.Input((6,)), layers.Dense(3, "tanh", name="e")]
        )
        self.d = keras.Sequential(
            [keras.Input((3,)), layers.Dense(6, name="d")]
        )

    def train_step(self, data):
        x = data[0]
        with tf.GradientTape() as tape:
            p = self.d(self.e(x, training=True), training=True)
            loss = tf.reduce_mean((p - x) ** 2)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return {"loss": loss}


def check_parts_of_a_model_that_is_not_called(folder):
    for eager in (False, True):

        def train(data, eager=eager):
            model = Parts()
            eager = eager or data is JOINT
            model.compile(kfac(model, fisher="auto"), run_eagerly=eager)
            for _ in range(4):
                model.train_on_batch(data["x"])
            return [model]

        compare(train)


def check_two_optimizers_of_a_gan(folder):
    cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True)
    for eager in (False, True):

        def train(data, eager=eager):
            D, G = network(6, 5, 1, name="d"), network(2, 4, 6, name="g")
            d_optimizer, g_optimizer = kfac(D), kfac(G)

            def step():
                size = len(data["x"])
                fake = G(data["noise"])
                with tf.GradientTape() as tape:
                    p = D(tf.concat([data["x"], fake], 0), training=True)
                    labels = np.repeat([[0.0], [1.0]], size, 0)
                    loss = cross_entropy(labels, p)
                variables = D.trainable_variables
                d_optimizer.apply(tape.gradient(loss, variables), variables)
                with tf.GradientTape() as tape:
                    p = D(G(data["noise"], training=True), training=True)
                    loss = cross_entropy(np.zeros((size, 1)), p)
                variables = G.trainable_variables
                g_optimizer.apply(tape.gradient(loss, variables), variables)

            step = step if eager or data is JOINT else tf.function(step)
            for _ in range(4):
                step()
            return [D, G]

        compare(train)


def check_losses_that_return_one_number(folder):
    def one_number(y, p):
        return tf.reduce_mean(tf.square(p - y))

    likelihood = tfkfac.Gaussian()
    for fisher in ("empirical", "sampled"):
        for loss in (one_number, "mse"):

            def train(data, fisher=fisher, loss=loss):
                model = network(6, 5, 3)
                optimizer = kfac(model, fisher=fisher, likelihood=likelihood)
                model.compile(optimizer, loss, run_eagerly=True)
                for _ in range(4):
                    model.train_on_batch(data["x"], data["y"])
                return [model]

            compare(train)


class Messages(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def check_unequal_shares_of_masked_outputs_are_said(folder):
    """And nothing is said where there are no masks."""
    messages = Messages()
    logging.getLogger("absl").addHandler(messages)
    said = []
    for masked, calls in ((False, 1), (True, 1), (True, 2)):
        messages.texts.clear()
        keras.utils.clear_session(free_memory=False)
        inputs = keras.Input((4, 6))
        x = layers.Masking()(inputs) if masked else inputs
        outputs = [layers.Dense(3, name=name)(x) for name in "ab"]
        model = keras.Model(inputs, outputs)
        model.compile(kfac(model), ["mse", "mse"])
        x = np.repeat(OWN["x"][:, None], 4, 1)
        x[:, 1 + RANK :] = 0
        y = np.repeat(OWN["y"][:, None], 4, 1)
        for _ in range(2):
            with tf.GradientTape() as tape:
                losses = [
                    model.compute_loss(x, [y, y], model(x, training=True))
                    for _ in range(calls)
                ]
            V = tape.gradient(losses, model.trainable_variables)
            model.optimizer.apply(V, model.trainable_variables)
        said.append(any("another share" in text for text in messages.texts))
        weights = np.concatenate([v.numpy().ravel() for v in model.weights])
        assert equal_on_all_ranks(weights)
    assert said == [False, True, True]
