"""Which calls V went through, where a step holds more than one pass."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac

RNG = np.random.default_rng(0)
X = tf.constant(RNG.normal(size=(8, 4)).astype("float32"))
Y = tf.constant(RNG.normal(size=(8, 1)).astype("float32"))


def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, "tanh", name="hidden"),
            keras.layers.Dense(1, name="out"),
        ]
    )


def mse(outputs):
    return tf.reduce_mean((outputs - Y) ** 2)


def plain(net, variables):
    with tf.GradientTape() as tape:
        loss = mse(net(X, training=True))
    return tape.gradient(loss, variables)


def on_inputs_made_of_another_gradient(net, variables):
    """The fast gradient sign method, at step size 0."""
    with tf.GradientTape() as tape:
        tape.watch(X)
        loss = mse(net(X, training=True))
    moved = X + 0.0 * tf.sign(tape.gradient(loss, X))
    with tf.GradientTape() as tape:
        loss = mse(net(moved, training=True))
    return tape.gradient(loss, variables)


def clipped_after_a_pass_that_is_not_applied(net, variables):
    with tf.GradientTape() as tape:
        loss = mse(net(3 * X, training=True))
    tape.gradient(loss, variables)
    gradients = plain(net, variables)
    return tf.clip_by_global_norm(gradients, 0.1)[0]


def beside_a_saliency_map(net, variables):
    """Under the tape of the step, and not in its loss."""
    with tf.GradientTape() as tape:
        loss = mse(net(X, training=True))
        with tf.GradientTape() as inner:
            inner.watch(X)
            total = tf.reduce_sum(net(3 * X, training=True))
        inner.gradient(total, X)
    return tape.gradient(loss, variables)


def within_the_context_of_its_tape(net, variables):
    with tf.GradientTape(persistent=True) as tape:
        outputs = net(X, training=True)
        loss, other = mse(outputs), 100 * tf.reduce_mean(outputs)
        gradients = tape.gradient(loss, variables)
    tape.gradient(other, variables)
    return gradients


def after_a_forward_accumulator(net, variables):
    with tf.autodiff.ForwardAccumulator(X, tf.ones_like(X)) as accumulator:
        outputs = net(3 * X, training=True)
    accumulator.jvp(outputs)
    return plain(net, variables)


def moments(gradients_of, eager):
    net = model()
    optimizer = tfkfac.KFAC(
        0.0, damping=0.1, factor_decay=0.0, fisher="empirical", model=net
    )

    def step():
        variables = net.trainable_variables
        optimizer.apply(gradients_of(net, variables), variables)

    step = step if eager else tf.function(step)
    step()
    return optimizer.moments()


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(
    "gradients_of",
    [
        on_inputs_made_of_another_gradient,
        clipped_after_a_pass_that_is_not_applied,
        beside_a_saliency_map,
        within_the_context_of_its_tape,
        after_a_forward_accumulator,
    ],
)
def test_the_statistics_are_those_of_the_pass_that_gave_v(gradients_of, eager):
    expected = moments(plain, eager)
    for name, value in moments(gradients_of, eager).items():
        np.testing.assert_allclose(
            value, expected[name], rtol=1e-5, atol=1e-7, err_msg=name
        )


@pytest.mark.parametrize("eager", [False, True])
def test_losses_that_are_called_twice_on_one_prediction(eager):
    """As for mixup: N is that of one, g that of the step."""

    def factors(weights):
        net = model()
        optimizer = tfkfac.KFAC(
            0.0, damping=0.1, factor_decay=0.0, fisher="empirical", model=net
        )
        net.compile(optimizer, "mse")

        def step():
            with tf.GradientTape() as tape:
                outputs = net(X, training=True)
                loss = sum(w * net.compute_loss(X, Y, outputs) for w in weights)
            variables = net.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)

        step = step if eager else tf.function(step)
        step()
        return optimizer.moments()

    expected = factors([1.0])
    for name, value in factors([0.25, 0.75]).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5)


def test_gradients_that_cannot_be_followed_are_refused_by_name():
    net = model()
    optimizer = tfkfac.KFAC(0.1, model=net)
    sums = [tf.Variable(tf.zeros_like(v)) for v in net.trainable_variables]

    @tf.function
    def step():
        for total, g in zip(sums, plain(net, net.trainable_variables)):
            total.assign_add(g)
        optimizer.apply([s.value() for s in sums], net.trainable_variables)

    with pytest.raises(ValueError, match="hidden, out cannot be followed"):
        step()


def test_persistent_tapes_keep_no_model_alive():
    def train():
        net = model()
        optimizer = tfkfac.KFAC(model=net, fisher="empirical")
        with tf.GradientTape(persistent=True) as tape:
            loss = mse(net(X, training=True))
        variables = net.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return weakref.ref(net), weakref.ref(optimizer)

    references = train()
    keras.backend.clear_session(free_memory=False)
    gc.collect()
    assert [r() for r in references] == [None, None]


@pytest.mark.parametrize("eager", [False, True])
def test_layers_that_are_built_within_a_call(eager):
    class Lazy(keras.Model):
        def build(self, shape):
            self.hidden = keras.layers.Dense(5, "tanh", name="hidden")
            self.out = keras.layers.Dense(1, name="out")

        def call(self, inputs):
            return self.out(self.hidden(inputs))

    net = Lazy()
    net.compile(tfkfac.KFAC(model=net), "mse", run_eagerly=eager)
    net.fit(X, Y, verbose=0)
    assert set(net.optimizer.moments()) == {
        f"{layer}/{factor}_factor"
        for layer in ("hidden", "out")
        for factor in ("input", "output")
    }
