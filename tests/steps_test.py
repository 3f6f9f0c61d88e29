"""Which calls count in steps of several optimizers, tapes and passes."""

import gc
import itertools

import keras
import numpy as np
import pytest
import steps
import tensorflow as tf
from keras import layers
from steps import X, Y, factors, fewer, fishers, kfac, mean_square, modes, net
from tensorflow.python.eager import record as tape_record


def below() -> layers.Dense:
    """Returns a layer below the network, of another optimizer."""
    layer = layers.Dense(4, name="below")
    layer.build((None, 4))
    return layer


# Steps of other optimizers.


def in_order(order, eager, times, persistent=False, **settings):
    """Returns (D, its factors) after steps of D ("d") and of G ("g")."""
    D = net()
    G = below()
    optimizer = kfac(D, **settings)

    def step():
        for s in order:
            with tf.GradientTape(persistent=persistent) as tape:
                x = 3 * G(X) if s == "g" else X
                loss = mean_square(D, x)
            if s == "g":
                tape.gradient(loss, G.trainable_variables)
            else:
                variables = D.trainable_variables
                optimizer.apply(tape.gradient(loss, variables), variables)

    steps.run(step, eager, times)
    return D, factors(optimizer)


ORDERS = "dg", "gd", "ggd", "dgd"


@modes
@pytest.mark.parametrize("order", ORDERS)
def test_calls_in_steps_of_others_do_not_count(order, eager):
    D, found = in_order(order, eager, 2, fisher="empirical")
    steps.assert_equal(found, steps.of_mean_square(D))


@modes
@pytest.mark.parametrize("order", ["dg", "gdg"])
def test_nor_do_they_under_persistent_tapes(order, eager):
    D, found = in_order(order, eager, 2, True, fisher="empirical")
    steps.assert_equal(found, steps.of_mean_square(D))


@modes
@pytest.mark.parametrize("order", ["dg", "gdg"])
def test_nor_do_they_where_targets_are_sampled(order, eager):
    sampled = steps.FISHERS["sampled"]
    expected = in_order("d", eager, 2, **sampled)[1]
    steps.assert_equal(in_order(order, eager, 2, **sampled)[1], expected)


@fewer
def test_another_loss_of_the_same_pass(fisher, eager):
    found = []
    for other in ("none", "last", "first", "second"):
        D, G = net(), below()
        optimizer = kfac(D, **fisher)

        def step(D=D, G=G, optimizer=optimizer, other=other):
            own, others = D.trainable_variables, G.trainable_variables
            with tf.GradientTape(persistent=True) as tape:
                p = D(G(X), training=True)
                loss = tf.reduce_mean((p - Y) ** 2)
                another = 100 * tf.reduce_mean(p)
            if other == "first":
                tape.gradient(another, others)
            gradients = tape.gradient(loss, own)
            if other == "second":
                tape.gradient(another, others)
            optimizer.apply(gradients, own)
            if other == "last":
                tape.gradient(another, others)

        steps.run(step, eager, 2)
        found.append(factors(optimizer))
        steps.assert_equal(found[-1], found[0])
    if "likelihood" not in fisher:
        steps.assert_equal(found[0], steps.of_mean_square(D, G(X).numpy()))


@modes
@pytest.mark.parametrize("size", [8, 32])
def test_a_penalty_of_no_weight(size, eager):
    """N = 2n; rows of the first call are N / n = 2, of the second 0."""
    D = net()
    optimizer = kfac(D, fisher="empirical")
    x = tf.constant(X[:size])

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(D(x, training=True))
            with tf.GradientTape() as inner:
                inner.watch(x)
                p = D(x, training=True)
            norm = tf.norm(inner.gradient(p, x), axis=1)
            loss += 0.0 * tf.reduce_mean((norm - 1) ** 2)
        variables = D.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    steps.run(step, eager, 2)
    np.testing.assert_allclose(
        factors(optimizer)["o/output_factor"], [[2.0]], rtol=1e-5
    )


@modes
@fishers
def test_a_saliency_map_between_forward_and_backward(fisher, eager):
    found = []
    for with_map in (False, True):
        model = net()
        optimizer = kfac(model, **fisher)

        def step(model=model, optimizer=optimizer, with_map=with_map):
            with tf.GradientTape() as tape:
                loss = mean_square(model)
            if with_map:
                x = tf.constant(X)
                with tf.GradientTape() as of_map:
                    of_map.watch(x)
                    score = tf.reduce_sum(model(x, training=True))
                of_map.gradient(score, x)
            variables = model.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)

        steps.run(step, eager, 2)
        found.append(factors(optimizer))
    steps.assert_equal(found[1], found[0])
    if "likelihood" not in fisher:
        steps.assert_equal(found[1], steps.of_mean_square(model))


@fewer
def test_a_layer_shared_by_the_models_of_two_optimizers(fisher, eager):
    """Each has the factors that it has alone."""

    def train(which):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        h = layers.Dense(6, "tanh", name="h")
        models = [
            keras.Sequential([keras.Input((4,)), h, layers.Dense(1, name="o")])
            for _ in range(2)
        ]
        # The same whether or not the other is attached.
        optimizers = {i: kfac(models[i], **fisher) for i in which}

        def step():
            for i, optimizer in optimizers.items():
                with tf.GradientTape() as tape:
                    loss = mean_square(models[i], (1 + i) * X)
                variables = models[i].trainable_variables
                optimizer.apply(tape.gradient(loss, variables), variables)

        steps.run(step, eager, 2)
        return {i: factors(o) for i, o in optimizers.items()}

    both = train([0, 1])
    for i in range(2):
        steps.assert_equal(both[i], train([i])[i])


@fewer
def test_the_model_within_that_of_another_optimizer(fisher, eager):
    """Of the inner one all layers are shared, of the outer one all too."""
    found = []
    for both in (False, True):
        inner = net()
        outer = keras.Sequential(
            [keras.Input((4,)), inner, layers.Activation("tanh")]
        )
        optimizer = kfac(outer, **fisher)
        other = kfac(inner, **fisher) if both else None

        def step(outer=outer, inner=inner, optimizer=optimizer, other=other):
            models = (outer, optimizer), (inner, other)
            for model, of_model in models[: 1 if other is None else 2]:
                with tf.GradientTape() as tape:
                    loss = mean_square(model)
                variables = model.trainable_variables
                of_model.apply(tape.gradient(loss, variables), variables)

        steps.run(step, eager, 2)
        found.append(factors(optimizer))
        if other is not None and "likelihood" not in fisher:
            steps.assert_equal(factors(other), steps.of_mean_square(inner))
    steps.assert_equal(found[1], found[0])


# Micro-steps and branches.


@modes
@fishers
def test_micro_steps_of_ones_own(fisher, eager):
    trained = []
    for parts in (1, 2):
        model = net()
        count = parts if parts > 1 else None
        optimizer = kfac(
            model, 0.1, gradient_accumulation_steps=count, **fisher
        )

        def step(x, y, model=model, optimizer=optimizer):
            with tf.GradientTape() as tape:
                loss = mean_square(model, x, y)
            variables = model.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)

        step = step if eager else tf.function(step)
        for _, i in itertools.product(range(3), range(parts)):
            part = slice(i * 32 // parts, (i + 1) * 32 // parts)
            step(tf.constant(X[part]), tf.constant(Y[part]))
        trained.append((factors(optimizer), steps.weights(model)))
    for one, two in zip(*trained):
        steps.assert_equal(two, one)


@fewer
def test_a_step_in_a_branch(fisher, eager):
    found = []
    for branch in (False, True):
        model = net()
        optimizer = kfac(model, **fisher)
        optimizer.build(model.trainable_variables)

        def train(model=model, optimizer=optimizer):
            with tf.GradientTape() as tape:
                loss = mean_square(model)
            variables = model.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)
            return loss

        def step(train=train, branch=branch, optimizer=optimizer):
            if not branch:
                return train()
            wanted = optimizer.iterations < 10
            return tf.cond(wanted, train, lambda: tf.zeros([]))

        steps.run(step, eager, 2)
        found.append(factors(optimizer))
    steps.assert_equal(found[1], found[0])


# What is left behind.


def test_a_pass_that_comes_to_nothing_leaves_no_tape():
    """A tape that went on would have all later passes taken for inner ones."""
    model = net()
    optimizer = kfac(model)
    with tf.GradientTape():
        model(X, training=True)
    assert optimizer._attached.recorder.tape is not None
    del model, optimizer
    gc.collect()
    assert not tape_record.could_possibly_record()
