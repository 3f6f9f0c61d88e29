"""Which Fisher the statistics are of, and of what loss."""

import keras
import numpy as np
import pytest
import steps
import tensorflow as tf
from keras import layers, ops
from programs import ByHand
from steps import X, Y, factors, kfac, modes, net

import tfkfac


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


@pytest.mark.parametrize(
    "likelihood, said",
    [
        ([tfkfac.Gaussian()] * 2, "a list of 2, and the loss is of 1 outputs"),
        (
            {"other": tfkfac.Gaussian()},
            "names other, and the loss is of .*by itself",
        ),
    ],
)
def test_likelihoods_of_other_outputs_are_refused(likelihood, said):
    model = net()
    optimizer = kfac(model, likelihood=likelihood)
    model.compile(optimizer, "mse", run_eagerly=True)
    with pytest.raises(ValueError, match=said):
        model.train_on_batch(X, Y)


@pytest.mark.parametrize(
    "likelihood",
    [
        {"b": tfkfac.Gaussian()},
        {"a": tfkfac.Categorical(), "b": tfkfac.Gaussian()},
        [tfkfac.Categorical(), tfkfac.Gaussian()],
        [tfkfac.Gaussian()],
    ],
    ids=["its name", "both names", "both", "its own"],
)
def test_the_likelihood_of_the_output_that_has_a_loss(likelihood):
    """With another output before it."""

    def trained(loss, **options):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4,))
        x = layers.Dense(3, activation="tanh", name="hidden")(inputs)
        ends = [
            layers.Dense(n, name=name)(x) for n, name in ((2, "a"), (1, "b"))
        ]
        model = keras.Model(inputs, ends)
        optimizer = kfac(model, fisher="sampled", **options)
        model.compile(optimizer, [None, loss], run_eagerly=True)
        model.train_on_batch(X, [np.zeros([len(X), 2]), Y])
        return factors(optimizer)

    def squares(y, p):
        return ops.mean(ops.square(y - p), axis=-1)

    found = trained(squares, likelihood=likelihood)
    steps.assert_equal(found, trained("mse"))


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
