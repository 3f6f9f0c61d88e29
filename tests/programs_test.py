"""Training steps of one's own: the guide's, episodes, several tapes."""

import functools

import keras
import numpy as np
import programs
import pytest
import tensorflow as tf
from keras import layers, ops
from programs import BATCH, ByHand, Program

import tfkfac

X = programs.normal(BATCH, 4)
Y = programs.normal(BATCH, 2, seed=1)
WEIGHTS = np.linspace(0.2, 2, BATCH, dtype="float32")


class ByComputeLoss(keras.Model):
    """The first step of "Customizing what happens in `fit()`"; its last one,
    where there are sample weights."""

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(
                y=y, y_pred=y_pred, sample_weight=sample_weight
            )
        variables = self.trainable_variables
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply(gradients, variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return {m.name: m.result() for m in self.metrics}


class ByLossFunction(keras.Model):
    """The guide's "Going lower-level": a loss and metrics of one's own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.mae_metric = keras.metrics.MeanAbsoluteError(name="mae")

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.reduced(keras.losses.mean_squared_error(y, y_pred))
        variables = self.trainable_variables
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply(gradients, variables)
        self.loss_tracker.update_state(loss)
        self.mae_metric.update_state(y, y_pred)
        return {m.name: m.result() for m in self.metrics}

    def reduced(self, loss):
        return ops.mean(loss)

    @property
    def metrics(self):
        return [self.loss_tracker, self.mae_metric]


class ByLosses(ByLossFunction):
    """As the guide once had it: the gradient is that of a vector."""

    def reduced(self, loss):
        return loss


def guide(of, make, eager, weights=None, **compilation):
    inputs = keras.Input((4,))
    x = layers.Dense(5, activation="tanh", name="hidden")(inputs)
    model = of(inputs, layers.Dense(2, name="out")(x))
    optimizer = make(model)
    model.compile(optimizer, run_eagerly=eager, **compilation)

    def by_hand():
        hand = ByHand()
        with hand.tape:
            squares = tf.square(hand.chain(model, X) - Y)
            w = np.ones(BATCH) if weights is None else weights
            loss = tf.reduce_mean(tf.reduce_mean(squares, axis=1) * w)
        return {"loss": hand.close(loss, BATCH)}

    return Program(
        {"loss": optimizer},
        {"loss": model},
        programs.fits(model, X, Y, sample_weight=weights),
        by_hand,
        falls=("loss",),
    )


EPISODE = 8
START = programs.normal(1, 4)
PUSHES = programs.normal(3, 4, seed=1)


def episode(policy, dtype):
    """Returns the loss of an episode, as in "Actor Critic Method".

    `policy` returns the logits of three actions and a value for a state.
    """
    state, chances, values, rewards = tf.cast(START, dtype), [], [], []
    for t in range(EPISODE):
        logits, value = policy(state)
        action = tf.random.stateless_categorical(
            tf.cast(logits, tf.float32), 1, seed=[programs.SEED, t]
        )[0, 0]
        chances.append(tf.nn.log_softmax(logits)[0, action])
        values.append(value[0, 0])
        push = tf.gather(tf.cast(PUSHES, dtype), [action])
        state = tf.tanh(state - 0.5 * tf.reverse(state, [1]) + push)
        rewards.append(1 - tf.reduce_mean(tf.square(state)))
    returns, discounted = [], 0.0
    for reward in reversed(rewards):
        discounted = reward + 0.9 * discounted
        returns.insert(0, discounted)
    returns = tf.stack(returns)
    returns -= tf.reduce_mean(returns)
    returns /= tf.math.reduce_std(returns) + 1e-6
    difference = returns - tf.stack(values)
    square, size = difference**2 / 2, tf.abs(difference)
    huber = tf.where(size < 1, square, size - 0.5)
    return tf.reduce_sum(huber - tf.stack(chances) * difference)


def actor_critic(make, eager):
    inputs = keras.Input((4,))
    common = layers.Dense(6, activation="relu", name="common")(inputs)
    model = keras.Model(
        inputs,
        [
            layers.Dense(3, name="actor")(common),
            layers.Dense(1, name="critic")(common),
        ],
    )
    optimizer = make(model)

    def step():
        with tf.GradientTape() as tape:
            loss = episode(model, tf.float32)
        variables = model.trainable_variables
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables))
        return loss

    def by_hand():
        hand = ByHand()

        def policy(state):
            x = hand.linear("common", model.get_layer("common"), state)
            return [
                hand.linear(name, model.get_layer(name), x)
                for name in ("actor", "critic")
            ]

        with hand.tape:
            loss = episode(policy, tf.float64)
        return {"loss": hand.close(loss, EPISODE)}

    return Program(
        {"loss": optimizer},
        {"loss": model},
        programs.loops(step, eager),
        by_hand,
    )


class Step:
    """A training step on what another network, `below`, returns."""

    def __init__(self):
        self.model = programs.network("net", 4, 5, 2)
        self.below = layers.Dense(4)
        self.below.build((None, 4))

    def losses(self):
        """Returns the loss to apply, and another one."""
        outputs = self.model(self.below(X), training=True)
        loss = tf.reduce_mean(tf.square(outputs - Y))
        return loss, 100 * tf.reduce_mean(outputs)

    def gradients(self, tape, loss):
        return tape.gradient(loss, self.model.trainable_variables)


def saliency(step):
    """A saliency map precedes the training step."""
    images = step.below(X)
    with tf.GradientTape() as tape:
        tape.watch(images)
        score = tf.reduce_max(step.model(images), axis=1)
    tape.gradient(score, images)
    with tf.GradientTape() as tape:
        loss, _ = step.losses()
    return loss, step.gradients(tape, loss)


def two_losses(is_first, of_own, step):
    """Another loss of a persistent tape, of the variables below or its own."""
    with tf.GradientTape(persistent=True) as tape:
        loss, other = step.losses()
    if is_first:
        gradients = step.gradients(tape, loss)
    if of_own:
        tf.linalg.global_norm(step.gradients(tape, other))  # For a log.
    else:
        tape.gradient(other, step.below.trainable_variables)
    if not is_first:
        gradients = step.gradients(tape, loss)
    return loss, gradients


CLIP = 0.1


def clipped(step):
    with tf.GradientTape() as tape:
        loss, _ = step.losses()
    return loss, tf.clip_by_global_norm(step.gradients(tape, loss), CLIP)[0]


def in_halves(step):
    """The gradients of the first layer, then those of the second one."""
    with tf.GradientTape(persistent=True) as tape:
        loss, _ = step.losses()
    encoder, decoder = step.model.layers
    return loss, [
        *tape.gradient(loss, encoder.trainable_variables),
        *tape.gradient(loss, decoder.trainable_variables),
    ]


def taped(gradients_of, make, eager):
    step = Step()
    optimizer = make(step.model)

    def train():
        loss, gradients = gradients_of(step)
        optimizer.apply(gradients, step.model.trainable_variables)
        return loss

    def by_hand():
        hand = ByHand()
        with hand.tape:
            features = X @ step.below.kernel.numpy()
            outputs = hand.chain(step.model, features)
            loss = tf.reduce_mean(tf.square(outputs - Y))
        return {"loss": hand.close(loss, BATCH)}

    return Program(
        {"loss": optimizer},
        {"loss": step.model},
        programs.loops(train, eager),
        by_hand,
        falls=("loss",),
        clip=CLIP if gradients_of is clipped else None,
    )


WITH_A_LIKELIHOOD = {
    "guide": functools.partial(
        guide, ByComputeLoss, loss="mse", metrics=["mae"]
    ),
    "guide, weights": functools.partial(
        guide, ByComputeLoss, weights=WEIGHTS, loss="mse"
    ),
}
WITHOUT = {
    "guide, lower-level": functools.partial(guide, ByLossFunction),
    "actor-critic": actor_critic,
    **{
        name: functools.partial(taped, gradients_of)
        for name, gradients_of in {
            "saliency": saliency,
            "first of two losses": functools.partial(two_losses, True, False),
            "second of two losses": functools.partial(two_losses, False, False),
            "gradient logged last": functools.partial(two_losses, True, True),
            "gradient logged first": functools.partial(two_losses, False, True),
            "clipped": clipped,
            "in halves": in_halves,
        }.items()
    },
}
PROGRAMS = {**WITH_A_LIKELIHOOD, **WITHOUT}


def each(of):
    return pytest.mark.parametrize("program", of.values(), ids=of)


@each(PROGRAMS)
def test_computation_by_hand(program):
    programs.check_by_hand(program)


@each(WITHOUT)
def test_factors_by_default_in_a_graph(program):
    programs.check_factors(program, eager=False)


@each(PROGRAMS)
def test_empirical_factors_eagerly(program):
    programs.check_factors(program, eager=True, fisher="empirical")


@each(WITH_A_LIKELIHOOD)
def test_empirical_factors_in_a_graph(program):
    programs.check_factors(program, eager=False, fisher="empirical")


@each(PROGRAMS)
def test_trains(program):
    programs.check_trains(program)


def test_trains_by_the_gradient_of_a_vector():
    programs.check_trains(functools.partial(guide, ByLosses))


SAMPLED = {
    "fisher": "sampled",
    "likelihood": [tfkfac.Categorical(), tfkfac.Gaussian()],
}


@pytest.mark.parametrize("eager", [False, True])
def test_input_factors_with_a_likelihood_for_each_output(eager):
    programs.check_factors(
        actor_critic, eager=eager, kinds=["input_factor"], **SAMPLED
    )


def test_trains_with_a_likelihood_for_each_output():
    programs.check_trains(actor_critic, **SAMPLED)
