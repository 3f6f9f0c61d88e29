"""What the statistics of a step are of, in training programs of all kinds."""

import keras
import numpy as np
import pytest
import steps
import tensorflow as tf
from keras import layers, ops
from programs import ByHand
from steps import X, Y, factors, fewer, kfac, modes, net

import tfkfac

# Losses.

ONE_HOT = np.eye(3, dtype="float32")[np.arange(32) % 3]
NUMBERS = {
    "by name": "mse",
    "of one number": lambda t, p: ops.mean(ops.square(t - p)),
    "of a matrix": lambda t, p: ops.square(t - p),
}


@modes
@pytest.mark.parametrize("loss", NUMBERS.values(), ids=NUMBERS)
def test_terms_of_a_mean_do_not_depend_on_its_shape(loss, eager):
    model = net()
    optimizer = kfac(model, fisher="empirical")
    model.compile(optimizer, loss, run_eagerly=eager)
    model.train_on_batch(X, Y)
    steps.assert_equal(factors(optimizer), steps.of_mean_square(model))


CROSS_ENTROPIES = {
    "by Keras": keras.losses.CategoricalCrossentropy(from_logits=True),
    "of a matrix": lambda t, p: -3 * t * tf.nn.log_softmax(p),
    "of one number": lambda t, p: ops.mean(
        keras.losses.categorical_crossentropy(t, p, from_logits=True)
    ),
}


@modes
@pytest.mark.parametrize("loss", CROSS_ENTROPIES.values(), ids=CROSS_ENTROPIES)
def test_sampled_terms_of_a_loss_of_any_shape(loss, eager):
    """At equal probabilities |p - target|^2 is 2/3 for any target."""
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, "linear", True, "zeros", name="o")]
    )
    optimizer = kfac(model, likelihood=tfkfac.Categorical())
    model.compile(optimizer, loss, run_eagerly=eager)
    model.train_on_batch(X, ONE_HOT)
    found = factors(optimizer)
    np.testing.assert_allclose(np.trace(found["o/output_factor"]), 2 / 3, 1e-5)
    ones = np.c_[X, np.ones(32)]
    np.testing.assert_allclose(
        found["o/input_factor"], ones.T @ ones / 32, rtol=1e-4, atol=1e-5
    )


@modes
def test_a_loss_without_a_likelihood(eager):
    model = net()
    optimizer = kfac(model)
    model.compile(optimizer, "mae", run_eagerly=eager)
    model.fit(X, Y, batch_size=32, verbose=0)
    hand = ByHand()
    with hand.tape:
        loss = tf.reduce_mean(tf.abs(hand.chain(model, X) - Y))
    steps.assert_equal(factors(optimizer), hand.close(loss, 32).factors())


class End(layers.Layer):
    """Adds the loss of the model, which is compiled without one."""

    def call(self, t, p):
        self.add_loss(ops.mean(ops.square(t - p)))
        return p


@modes
@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_losses_that_are_added(fisher, eager):
    body, i, t = net(), keras.Input((4,)), keras.Input((1,))
    model = keras.Model([i, t], End()(t, body(i)))
    optimizer = kfac(model, fisher=fisher)
    model.compile(optimizer, run_eagerly=eager)
    model.fit([X, Y], batch_size=32, verbose=0)
    expected = steps.of_mean_square(body)
    expected = {f"{body.name}/{k}": v for k, v in expected.items()}
    steps.assert_equal(factors(optimizer), expected)


@modes
def test_several_outputs_and_a_loss_of_ones_own(eager):
    i = keras.Input((4,))
    h = layers.Dense(6, "tanh", name="h")(i)
    heads = layers.Dense(3, name="pi"), layers.Dense(1, name="v")
    model = keras.Model(i, [head(h) for head in heads])
    optimizer = kfac(model, fisher="empirical")

    def loss_of(pi, v):
        y = tf.cast(Y, v.dtype)
        loss = tf.reduce_mean(tf.nn.log_softmax(pi)[:, :1] * y)
        return loss + tf.reduce_mean((v - y) ** 2)

    def step():
        with tf.GradientTape() as tape:
            loss = loss_of(*model(X, training=True))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    steps.run(step, eager)
    hand = ByHand()
    with hand.tape:
        x = hand.linear("h", model.get_layer("h"), tf.cast(X, tf.float64))
        loss = loss_of(*(hand.linear(o.name, o, x) for o in heads))
    steps.assert_equal(factors(optimizer), hand.close(loss, 32).factors())


# What the loss is called with.

OF_PREDICTION = {
    "identity": tf.identity,
    "cast": lambda p: tf.cast(p, tf.float64),
    "slice": lambda p: p[:, :1],
}


def with_weights(change, w, eager, **settings):
    """Returns (model, factors) of a loss of what is made of the output."""
    model = net()
    optimizer = kfac(model, **settings)
    model.compile(optimizer, keras.losses.MeanSquaredError())
    y = change(tf.constant(Y))

    def step():
        with tf.GradientTape() as tape:
            p = change(model(X, training=True))
            loss = model.compute_loss(X, y, p, w)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    steps.run(step, eager)
    return model, factors(optimizer)


@fewer
def test_a_prediction_that_is_no_output(fisher, eager):
    w = np.linspace(0.2, 2, 32).astype("float32")
    model, expected = with_weights(lambda p: p, w, eager, **fisher)
    if "likelihood" not in fisher:
        steps.assert_equal(expected, steps.of_mean_square(model, w=w))
    for change in OF_PREDICTION.values():
        _, found = with_weights(change, w, eager, **fisher)
        steps.assert_equal(found, expected)


@fewer
def test_a_squeezed_prediction(fisher, eager):
    """Keras' loss is one number there, and weights have no effect."""
    _, expected = with_weights(lambda p: p, None, eager, **fisher)
    _, found = with_weights(lambda p: tf.squeeze(p, 1), None, eager, **fisher)
    steps.assert_equal(found, expected)


@modes
def test_weights_of_a_prediction_count(eager):
    w = np.zeros(32, "float32")
    w[0] = 32
    model, found = with_weights(tf.identity, w, eager, fisher="empirical")
    expected = steps.of_mean_square(model)
    per_example = steps.of_mean_square(model, X[:1], Y[:1])
    for name, value in expected.items():
        if name.endswith("output_factor"):  # 32^2 of one example in 32.
            value = 32 * per_example[name]
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)


@modes
def test_similarities_of_embeddings_are_the_logits(eager):
    """In metric learning the compiled loss takes no output of the model."""
    model = net(3)
    optimizer = kfac(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)

    def step():
        with tf.GradientTape() as tape:
            a, b = model(X[:8], training=True), model(X[8:16], training=True)
            p = tf.matmul(a, b, transpose_b=True)
            loss = model.compute_loss(y=tf.range(8), y_pred=p)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    steps.run(step, eager)
    hand = ByHand()
    with hand.tape:
        a, b = hand.chain(model, X[:8]), hand.chain(model, X[8:16])
        p = tf.nn.log_softmax(tf.matmul(a, b, transpose_b=True))
        loss = -tf.reduce_mean(tf.linalg.diag_part(p))
    steps.assert_equal(factors(optimizer), hand.close(loss, 8).factors())


# Masks.

SEQUENCES = np.repeat(X[:, None], 5, 1)
SEQUENCES[:, 2:] = 0


@modes
@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_a_mask_below_time_distributed(fisher, eager):
    found, losses = [], []
    for wrap in (lambda d: d, layers.TimeDistributed):
        keras.utils.set_random_seed(0)
        d = layers.Dense(3)
        model = keras.Sequential(
            [keras.Input((5, 4)), layers.Masking(), wrap(d)]
        )
        optimizer = kfac(model, fisher=fisher)
        model.compile(optimizer, "mse", run_eagerly=eager)
        y = np.broadcast_to(Y[:, None], (32, 5, 3))
        losses.append(model.train_on_batch(SEQUENCES, y))
        of_model = factors(optimizer).items()
        found.append({k.split("/")[-1]: v for k, v in of_model})
    np.testing.assert_allclose(*losses, rtol=1e-6)
    steps.assert_equal(*found)
    ones = np.c_[X, np.ones(32)]  # 2 of 5 steps, N is the number of them.
    expected = ones.T @ ones / 32
    np.testing.assert_allclose(
        found[1]["input_factor"], expected, rtol=1e-4, atol=1e-5
    )
