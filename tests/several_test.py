"""Several calls of a model before an update, several outputs, added losses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 6)).astype("float32")
Y = RNG.integers(0, 3, 12)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def flat(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])


def initialize(model):
    for i, v in enumerate(model.trainable_variables):
        v.assign(np.random.default_rng(i).normal(size=v.shape) / 3)
    return model


def single():
    keras.utils.clear_session(free_memory=False)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(5, activation="tanh", name="hidden")(inputs)
    return initialize(
        keras.Model(inputs, keras.layers.Dense(3, name="logits")(x))
    )


def kfac(model, **settings):
    settings = {"fisher": "empirical", **settings}
    return tfkfac.KFAC(0.1, damping=0.1, model=model, **settings)


@pytest.mark.parametrize("loss_by", ["compute_loss", "own"])
@pytest.mark.parametrize("inverter", ["cholesky", "eigen"])
def test_two_calls_equal_the_joint_batch(loss_by, inverter):
    """A model called twice in a step, as for pairs."""
    model = single()
    model.compile(kfac(model, inverter=inverter), LOSS)
    for _ in range(3):
        model.train_on_batch(X, Y)
    expected = flat(model)

    model = single()
    optimizer = kfac(model, inverter=inverter)
    model.compile(optimizer, LOSS)
    halves = [(X[:6], Y[:6]), (X[6:], Y[6:])]

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = 0.0
            for x, y in halves:
                outputs = model(x, training=True)
                if loss_by == "own":
                    loss += LOSS(y, outputs) / 2
                else:
                    loss += model.compute_loss(y=y, y_pred=outputs) / 2
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    for _ in range(3):
        step()
    np.testing.assert_allclose(flat(model), expected, rtol=1e-5, atol=1e-7)


def two_outputs():
    keras.utils.clear_session(free_memory=False)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(5, activation="tanh", name="hidden")(inputs)
    outputs = [keras.layers.Dense(3, name=name)(x) for name in ("a", "b")]
    return initialize(keras.Model(inputs, outputs))


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_outputs_with_loss_weights(fisher):
    """Three times the weights: V and the sampled F are three times as large,
    the empirical F nine times."""

    class Given(tfkfac.Categorical):
        def sample(self, outputs, uniforms):
            return tf.zeros([tf.shape(outputs)[0]], tf.int32)

    results = []
    three = (0.1, 0.3) if fisher == "sampled" else (0.3, 0.9)
    for weights, (rate, damping) in (
        ([1.0, 0.5], (0.1, 0.1)),
        ([3.0, 1.5], three),
    ):
        model = two_outputs()
        optimizer = tfkfac.KFAC(
            rate,
            damping=damping,
            fisher=fisher,
            likelihood=Given(),
            inverter="eigen",
            kl_clip=None,
            model=model,
        )
        model.compile(optimizer, [LOSS, LOSS], loss_weights=weights)
        for _ in range(3):
            model.train_on_batch(X, [Y, Y])
        results.append(flat(model))
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
def test_added_losses_and_regularizers_enter_v_only(reduction):
    """The factors are those of the model without them."""
    states = []
    for extra in (False, True):
        keras.utils.clear_session(free_memory=False)
        model = keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(
                    5,
                    name="hidden",
                    activity_regularizer="l2" if extra else None,
                    kernel_regularizer="l2" if extra else None,
                ),
                keras.layers.Dense(3, name="logits"),
            ]
        )
        initialize(model)
        optimizer = kfac(model)
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction=reduction
        )
        model.compile(optimizer, loss)
        model.train_on_batch(X, Y)
        states.append((optimizer.curvature.state(), flat(model)))
    for name, value in states[0][0].items():
        np.testing.assert_allclose(
            states[1][0][name], value, rtol=1e-5, atol=1e-7, err_msg=name
        )
    assert np.abs(states[0][1] - states[1][1]).max() > 1e-4
