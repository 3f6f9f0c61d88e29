"""What is recorded and what is not, in unusual company."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from tfkfac import registry
from tfkfac.capture.recorder import Recorder, unheard

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 6)).astype("float32")
Y = RNG.integers(0, 3, 8)
SEQUENCES = RNG.normal(size=(8, 6, 4)).astype("float32")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def initialize(model):
    for i, v in enumerate(model.trainable_variables):
        v.assign(np.random.default_rng(i).normal(size=v.shape) / 3)
    return model


def dense_model(**hidden):
    keras.utils.clear_session(free_memory=False)
    layers = [
        keras.Input((6,)),
        keras.layers.Dense(5, activation="tanh", name="hidden", **hidden),
        keras.layers.Dense(3, name="logits"),
    ]
    return initialize(keras.Sequential(layers))


def compiled(model, compile_settings=None, **settings):
    settings = {"damping": 0.1, "inverse_update_period": 2, **settings}
    optimizer = tfkfac.KFAC(0.1, model=model, **settings)
    model.compile(optimizer, LOSS, **(compile_settings or {}))
    return model


def flat(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])


def factor(model, name):
    state = model.optimizer.curvature.state()
    return state[f"{name}/moment"] / state[f"{name}/weight"]


def test_an_eager_look_does_not_reach_a_graph_step():
    models = [compiled(dense_model()) for _ in range(2)]
    for model in models:
        model.train_on_batch(X, Y)
    for size in (8, 5):  # Traced before, and traced anew.
        with tf.GradientTape() as tape:
            loss = LOSS(Y, models[0](X * 10, training=True))
        tape.gradient(loss, models[0].trainable_variables)
        for model in models:
            model.train_on_batch(X[:size], Y[:size])
    np.testing.assert_array_equal(*map(flat, models))


def test_a_frozen_model_is_called_like_any_other():
    """As the body under a new head, and for gradients of its inputs."""
    body = compiled(dense_model())
    body.train_on_batch(X, Y)
    body.trainable = False
    model = keras.Sequential(
        [keras.Input((6,)), body, keras.layers.Dense(3, name="head")]
    )
    model.compile("sgd", LOSS)
    model.train_on_batch(X, Y)
    with tf.GradientTape() as tape:
        inputs = tf.constant(X)
        tape.watch(inputs)
        outputs = body(inputs)
    assert np.abs(tape.gradient(outputs, inputs)).max() > 0


def test_nothing_is_kept_when_another_optimizer_trains():
    model = compiled(dense_model())
    recorder = model.optimizer._attached.recorder
    model.compile("adam", LOSS, run_eagerly=True)
    for _ in range(5):
        model.train_on_batch(X, Y)
    assert len(recorder.calls) <= len(model.layers)  # Of the first step.


def masked_model():
    keras.utils.clear_session(free_memory=False)
    inputs = keras.Input((6, 4))
    x = keras.layers.Masking(name="mask")(inputs)
    x = keras.layers.Dense(5, activation="tanh", name="hidden")(x)
    return initialize(
        keras.Model(inputs, keras.layers.Dense(3, name="logits")(x))
    )


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_masks_count_in_loops_of_your_own(fisher):
    x = SEQUENCES.copy()
    x[:5, 2:] = 0
    y = RNG.integers(0, 3, (8, 6))
    model = compiled(masked_model(), fisher=fisher)
    for _ in range(3):
        model.train_on_batch(x, y)
    expected = flat(model)
    model = compiled(masked_model(), fisher=fisher)
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        variables = model.trainable_variables
        model.optimizer.apply(tape.gradient(loss, variables), variables)
    np.testing.assert_allclose(flat(model), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
def test_layers_that_ignore_masks_count_all_rows():
    factors = []
    for mask in (False, True):
        keras.utils.clear_session(free_memory=False)
        inputs = keras.Input((6, 4))
        x = keras.layers.Masking()(inputs) if mask else inputs
        x = keras.layers.Conv1D(3, 3, padding="same", name="conv")(x)
        x = keras.layers.EinsumDense("abc,bcd->ad", 3, name="all")(x)
        model = compiled(initialize(keras.Model(inputs, x)))
        model.train_on_batch(SEQUENCES, Y)
        factors.append(factor(model, "conv/input_factor"))
    np.testing.assert_array_equal(*factors)


class Adding(keras.Model):
    """Its training step adds a loss of its own."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight
        self.body = dense_model()

    def call(self, inputs):
        return self.body(inputs)

    def train_step(self, data):
        x, y = data[:2]
        with tf.GradientTape(persistent=True) as tape:
            p = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=p)
            more = self.weight * tf.reduce_mean(p**2)
            loss += more
        variables = self.trainable_variables
        tape.gradient(more, variables)
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, variables), variables)
        )
        return {"loss": loss}


def test_empirical_factors_are_those_of_the_compiled_loss():
    factors = []
    for weight in (0.0, 10.0):
        model = Adding(weight)
        model(X)
        model = compiled(model, fisher="empirical")
        model.train_on_batch(X, Y)
        name = model.optimizer._attached.layers.registration.blocks[1].path
        factors.append(factor(model, f"{name}/output_factor"))
    np.testing.assert_allclose(*factors, rtol=1e-5)


def test_added_losses_count_where_they_cannot_be_told_apart(caplog):
    """In a loss of one's own: all of it is taken, and this is said."""
    model = compiled(
        dense_model(activity_regularizer="l2"),
        {"run_eagerly": True},
        fisher="empirical",
    )
    with tf.GradientTape() as tape:
        loss = LOSS(Y, model(X, training=True)) + sum(model.losses)
    variables = model.trainable_variables
    model.optimizer.apply(tape.gradient(loss, variables), variables)
    assert "activity regularizers count" in caplog.text
    assert "compute_loss" in caplog.text
    assert np.trace(factor(model, "hidden/output_factor")[0]) > 0


@pytest.mark.parametrize("eager", [False, True])
def test_rematerialized_layers_take_the_plain_gradient(eager, caplog):
    class Remat(keras.Model):
        def __init__(self):
            super().__init__()
            with keras.RematScope(mode="full"):
                self.first = keras.layers.Dense(5, name="first")
            self.second = keras.layers.Dense(3, name="second")

        def call(self, inputs):
            return self.second(self.first(inputs))

    model = Remat()
    model(X)
    model = compiled(model, {"run_eagerly": eager})
    before = flat(model)
    model.train_on_batch(X, Y)
    assert "rematerialized" in caplog.text
    assert np.abs(flat(model) - before).max() > 1e-3
    assert [
        b.path for b in model.optimizer._attached.layers.registration.blocks
    ] == ["second"]


def test_recurrent_cells_take_the_plain_gradient_eagerly_too():
    class Cell(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.state_size = self.output_size = 5
            self.dense = keras.layers.Dense(5, activation="tanh", name="inner")

        def build(self, shape):
            self.dense.build((shape[0], shape[1] + 5))

        def call(self, inputs, states):
            x = self.dense(keras.ops.concatenate([inputs, states[0]], -1))
            return x, [x]

    results = []
    for eager in (False, True):
        keras.utils.clear_session(free_memory=False)
        inputs = keras.Input((6, 4))
        x = keras.layers.RNN(Cell(), name="rnn")(inputs)
        model = initialize(keras.Model(inputs, keras.layers.Dense(3)(x)))
        model = compiled(model, {"run_eagerly": eager})
        for _ in range(3):
            model.train_on_batch(SEQUENCES, Y)
        results.append(flat(model))
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-7)


def test_a_call_set_on_a_layer_is_put_back():
    model = compiled(dense_model())
    layer = model.get_layer("hidden")
    original = layer.call
    layer.call = lambda inputs, **options: 2 * original(inputs, **options)
    own = layer.__dict__["call"]
    model.train_on_batch(X, Y)
    assert layer.__dict__["call"] is own


def test_what_is_heard():
    """Calls under a tape that are not said to be no training."""
    model = dense_model()
    recorder = Recorder(model, registry.block_type, before=lambda: True)

    def heard(**options):
        with tf.GradientTape():
            model(X, **options)
        calls, *_ = recorder.pop()
        return [c.call.layer.name for c in calls]

    assert heard() == heard(training=True) == ["hidden", "logits"]
    assert heard(training=False) == []
    model(X, training=True)
    assert not recorder.calls
    with unheard(model):
        assert heard() == []
    recorder.release()
    assert heard() == []
    assert all("call" not in vars(layer) for layer in model.layers)
