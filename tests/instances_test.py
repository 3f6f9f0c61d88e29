"""Methods that are set on a model itself, loss scales, and XLA."""

import types

import keras
import pytest
import steps
import tensorflow as tf
from keras import layers
from steps import (
    FISHERS,
    X,
    Y,
    factors,
    fewer,
    kfac,
    mean_square,
    modes,
    net,
)

# Methods of the instance.


def own_train_step(self, data):
    x, y = data[:2]
    with tf.GradientTape() as tape:
        loss = mean_square(self, x, y)
    variables = self.trainable_variables
    self.optimizer.apply(tape.gradient(loss, variables), variables)
    return {"loss": loss}


def own_compute_loss(self, x=None, y=None, y_pred=None, *args, **options):
    return tf.reduce_mean((y_pred - y) ** 2)


def own_call(self, *args, **options):
    return type(self).call(self, *args, **options)


METHODS = {
    "train_step": own_train_step,
    "compute_loss": own_compute_loss,
    "call": own_call,
}
WHEN = {
    "before": True,
    "after": True,
    "after compile": False,
    "after a fit": False,
}


def fit_with(method, when, make, **compilation):
    """Returns (model, calls) of a fit with a method that counts its calls."""
    model, calls = net(), []

    def counted(self, *args, **options):
        calls.append(1)
        return METHODS[method](self, *args, **options)

    def install():
        setattr(model, method, types.MethodType(counted, model))

    def fit():
        model.fit(X, Y, batch_size=32, epochs=2, shuffle=False, verbose=0)

    if when == "before":
        install()
    optimizer = make(model)
    if when == "after":
        install()
    model.compile(optimizer, "mse", **compilation)
    if when == "after compile":
        install()
    if when == "after a fit":
        fit()
        install()
        model.compile(optimizer, "mse", **compilation)
    calls.clear()
    fit()
    return model, len(calls)


@pytest.mark.parametrize("when, eager", WHEN.items())
@pytest.mark.parametrize("method", METHODS)
def test_methods_of_the_instance_are_called_as_with_sgd(method, when, eager):
    _, expected = fit_with(
        method, when, lambda model: keras.optimizers.SGD(), run_eagerly=eager
    )
    model, found = fit_with(
        method,
        when,
        lambda model: kfac(model, fisher="empirical"),
        run_eagerly=eager,
    )
    assert found == expected > 0
    steps.assert_equal(factors(model.optimizer), steps.of_mean_square(model))


# Loss scales.


def scaled_loop(scale, eager, fisher, **options):
    """Returns (weights, factors) of a loop of one's own after five steps."""
    model = net()
    inner = kfac(model, 0.1, momentum=0.9, **fisher, **options)
    optimizer = inner
    if scale:
        optimizer = keras.optimizers.LossScaleOptimizer(
            inner, initial_scale=2.0**10, dynamic_growth_steps=2
        )

    def step():
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(mean_square(model))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    steps.run(step, eager, 5)
    return steps.weights(model), factors(inner)


@fewer
def test_a_loss_scale_changes_nothing(fisher, eager):
    """Nor where it grows, after the second and the fourth step."""
    expected = scaled_loop(False, eager, fisher)
    for part, of_plain in zip(scaled_loop(True, eager, fisher), expected):
        steps.assert_equal(part, of_plain, rtol=1e-3)
    fixed = scaled_loop(False, eager, fisher, loss_scale_factor=64.0)
    for part, of_plain in zip(fixed, expected):
        steps.assert_equal(part, of_plain, rtol=1e-3)


@modes
def test_the_loss_falls_under_a_loss_scale(eager):
    model = net()
    optimizer = keras.optimizers.LossScaleOptimizer(kfac(model, 0.1))

    def step():
        with tf.GradientTape() as tape:
            loss = mean_square(model)
            scaled = optimizer.scale_loss(loss)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(scaled, variables), variables)
        return loss

    first = float(mean_square(model))
    assert float(steps.run(step, eager, 5)) < 0.95 * first


# XLA.


class Parts(keras.Model):
    """Its training step calls the two parts, and never the model."""

    def __init__(self):
        super().__init__()
        self.e = keras.Sequential(
            [keras.Input((4,)), layers.Dense(2, "tanh", name="e")]
        )
        self.d = keras.Sequential(
            [keras.Input((2,)), layers.Dense(4, name="d")]
        )

    def train_step(self, data):
        x = data[0] if isinstance(data, tuple) else data
        with tf.GradientTape() as tape:
            p = self.d(self.e(x, training=True), training=True)
            loss = tf.reduce_mean((p - x) ** 2)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return {"loss": loss}


def fit_parts(fisher="empirical", **compilation):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    model = Parts()
    model.compile(kfac(model, 0.1, fisher=fisher), **compilation)
    model.fit(X, batch_size=32, epochs=2, verbose=0)
    return steps.weights(model), factors(model.optimizer)


def test_parts_of_a_model_that_is_not_called():
    keras.utils.set_random_seed(0)
    model = Parts()
    optimizer = kfac(model)
    model.compile(optimizer)
    model.fit(X, batch_size=32, verbose=0)
    hand = steps.ByHand()
    with hand.tape:
        x = tf.cast(X, tf.float64)
        for part in (model.e, model.d):
            x = hand.chain(part, x, part.name + "/")
        loss = tf.reduce_mean((x - X) ** 2)
    found = factors(optimizer)
    steps.assert_equal(found, hand.close(loss, 32).factors())


def test_parts_of_a_model_in_all_modes():
    expected = fit_parts()
    for mode in ({"run_eagerly": True}, {"jit_compile": True}):
        for found, value in zip(fit_parts(**mode), expected):
            steps.assert_equal(found, value, rtol=1e-3)


@pytest.mark.parametrize(
    "method, fisher", [("train_step", "empirical"), ("compute_loss", "sampled")]
)
def test_methods_of_the_instance_under_xla(method, fisher):
    trained = []
    for jit_compile in (False, True):
        model, calls = fit_with(
            method,
            "after",
            lambda model: kfac(model, 0.1, **FISHERS[fisher]),
            jit_compile=jit_compile,
        )
        assert calls > 0
        trained.append((steps.weights(model), factors(model.optimizer)))
    for found, expected in zip(*trained):
        steps.assert_equal(found, expected, rtol=1e-3)
