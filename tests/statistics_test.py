"""What the statistics of a step are of, in training programs of all kinds."""

import keras
import numpy as np
import pytest
import steps
import tensorflow as tf
from keras import layers
from programs import ByHand
from steps import X, Y, factors, fewer, kfac, modes, net

# Losses.


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
