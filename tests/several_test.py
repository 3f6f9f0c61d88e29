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


class Given(tfkfac.Categorical):
    """Always samples the first class."""

    def sample(self, outputs, uniforms):
        return tf.zeros([tf.shape(outputs)[0]], tf.int32)


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_outputs_with_loss_weights(fisher):
    """Three times the weights: V and the sampled F are three times as large,
    the empirical F nine times."""
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


def tokens_and_examples():
    """One output has a label for each token, the other for each example."""
    inputs = keras.Input((4, 6))
    x = keras.layers.Dense(5, activation="tanh", name="hidden")(inputs)
    tokens = keras.layers.Dense(3, name="tokens")(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    examples = keras.layers.Dense(2, name="examples")(x)
    return initialize(keras.Model(inputs, [tokens, examples]))


def cross_entropy_gradient(s, classes):
    """The derivative of -log softmax(s)[class], shaped as s."""
    p = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    return p - np.eye(s.shape[-1])[classes]


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_a_label_for_each_token_and_one_for_each_example(float64, fisher):
    """N counts tokens, and the term of an example weighs as T of them.

    With B examples of T tokens, L = sum l_token / (B T) + sum l_example / B,
    so that N L = sum l_token + T sum l_example.
    """
    B, T = 3, 4
    rng = np.random.default_rng(1)
    x = rng.normal(size=(B, T, 6))
    classes = rng.integers(0, 3, (B, T)), rng.integers(0, 2, B)
    model = tokens_and_examples()
    W, b, W_token, b_token, W_example, b_example = (
        v.numpy() for v in model.trainable_variables
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = tfkfac.KFAC(
        0.0, factor_decay=0.0, fisher=fisher, likelihood=Given(), model=model
    )
    model.compile(optimizer, [loss, loss])
    model.train_on_batch(x, list(classes))

    weight = T
    if fisher == "sampled":
        classes, weight = (np.zeros((B, T), int), np.zeros(B, int)), T**0.5
    h = np.tanh(x @ W + b)
    pooled = h.mean(1)
    g_token = cross_entropy_gradient(h @ W_token + b_token, classes[0])
    g_example = weight * cross_entropy_gradient(
        pooled @ W_example + b_example, classes[1]
    )
    g_h = g_token @ W_token.T + (g_example @ W_example.T)[:, np.newaxis] / T
    expected = {}
    for name, a, g in (
        ("hidden", x, g_h * (1 - h**2)),
        ("tokens", h, g_token),
        ("examples", pooled, g_example),
    ):
        a, g = a.reshape(-1, a.shape[-1]), g.reshape(-1, g.shape[-1])
        a = np.hstack([a, np.ones([len(a), 1])])
        expected[f"{name}/input_factor"] = a.T @ a / (B * T)
        expected[f"{name}/output_factor"] = g.T @ g / len(g)
    found = optimizer.moments()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name][0], value, 1e-9, err_msg=name)


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
