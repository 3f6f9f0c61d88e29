"""One trajectory, however the training is driven."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac

STEPS, BATCH = 8, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(STEPS * BATCH, 6, 6, 2)).astype("float32")
Y = RNG.integers(0, 3, size=STEPS * BATCH)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def layers():
    return [
        keras.layers.Conv2D(3, 3, strides=2, activation="tanh", name="conv"),
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(5, activation="tanh", name="hidden"),
        keras.layers.Dense(3, name="logits"),
    ]


def sequential():
    return keras.Sequential([keras.Input(X.shape[1:]), *layers()])


def functional():
    inputs = x = keras.Input(X.shape[1:])
    for layer in layers():
        x = layer(x)
    return keras.Model(inputs, x)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.body = layers()

    def call(self, inputs):
        for layer in self.body:
            inputs = layer(inputs)
        return inputs


def nested():
    first, second = layers()[:2], layers()[2:]
    body = keras.Sequential([keras.Input(X.shape[1:]), *first])
    return keras.Sequential([keras.Input(X.shape[1:]), body, *second])


def initialize(model):
    """Gives every kernel values that depend on its shape alone."""
    model(X[:1])
    for v in model.trainable_variables:
        rng = np.random.default_rng(len(v.shape))
        v.assign(rng.normal(size=v.shape) * 0.3)


def make(build, fisher="sampled", **settings):
    model = build()
    initialize(model)
    optimizer = tfkfac.KFAC(
        0.05,
        damping=0.1,
        factor_update_period=2,
        inverse_update_period=3,
        fisher=fisher,
        model=model,
        **settings,
    )
    return model, optimizer


def weights(model):
    return np.concatenate(
        [v.numpy().ravel() for v in model.trainable_variables]
    )


def run_fit(build, compile_settings=None, **settings):
    model, optimizer = make(build, **settings)
    model.compile(optimizer, LOSS, **(compile_settings or {}))
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0)
    return weights(model)


def batches():
    for i in range(0, STEPS * BATCH, BATCH):
        yield X[i : i + BATCH], Y[i : i + BATCH]


def run_train_on_batch(build, **settings):
    model, optimizer = make(build, **settings)
    model.compile(optimizer, LOSS)
    for x, y in batches():
        model.train_on_batch(x, y)
    return weights(model)


def run_custom_loop(build, graph, compiled=True, **settings):
    if not compiled:
        settings["likelihood"] = tfkfac.Categorical()
    model, optimizer = make(build, **settings)
    if compiled:
        model.compile(optimizer, LOSS)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    if graph:
        step = tf.function(step)
    for x, y in batches():
        step(tf.constant(x), tf.constant(y))
    return weights(model)


@pytest.fixture(scope="module")
def reference():
    """The weights after `fit` in graph mode, for each kind of Fisher."""
    keras.utils.clear_session(free_memory=False)
    return {
        fisher: run_fit(sequential, fisher=fisher)
        for fisher in ("sampled", "empirical")
    }


@pytest.mark.parametrize("build", [functional, Subclassed, nested])
def test_every_kind_of_model(reference, build):
    np.testing.assert_allclose(run_fit(build), reference["sampled"], rtol=1e-5)


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
@pytest.mark.parametrize(
    "run",
    [
        lambda **s: run_fit(sequential, {"run_eagerly": True}, **s),
        lambda **s: run_fit(sequential, {"steps_per_execution": 4}, **s),
        lambda **s: run_train_on_batch(sequential, **s),
        lambda **s: run_custom_loop(sequential, graph=True, **s),
        lambda **s: run_custom_loop(sequential, graph=False, **s),
        lambda **s: run_custom_loop(functional, True, compiled=False, **s),
    ],
    ids=[
        "eager fit",
        "steps_per_execution",
        "train_on_batch",
        "custom graph loop",
        "custom eager loop",
        "uncompiled",
    ],
)
def test_every_way_of_training(reference, run, fisher):
    np.testing.assert_allclose(
        run(fisher=fisher), reference[fisher], rtol=1e-5, atol=1e-7
    )


def test_the_trajectory_moves(reference):
    """Guards the comparisons above: both kinds train, and differ."""
    model = sequential()
    initialize(model)
    start = weights(model)
    for after in reference.values():
        assert np.abs(after - start).max() > 0.01
    assert np.abs(reference["sampled"] - reference["empirical"]).max() > 1e-3


@pytest.mark.parametrize("stop", [1, 4, 5])
def test_save_and_load_in_mid_period(reference, tmp_path, stop):
    """A model saved as .keras after `stop` steps goes on as if nothing was."""
    model, optimizer = make(sequential)
    model.compile(optimizer, LOSS)
    data = list(batches())
    for x, y in data[:stop]:
        model.train_on_batch(x, y)
    path = tmp_path / "model.keras"
    model.save(path)
    restored = keras.models.load_model(path)
    with pytest.raises(RuntimeError, match="tfkfac.attach"):
        restored.train_on_batch(*data[stop])
    tfkfac.attach(restored)
    for x, y in data[stop:]:
        restored.train_on_batch(x, y)
    np.testing.assert_allclose(
        weights(restored), reference["sampled"], rtol=1e-5
    )


def test_calls_outside_training_leave_no_trace(reference):
    model, optimizer = make(sequential)
    model.compile(optimizer, LOSS)
    for x, y in batches():
        model.predict(x, verbose=0)
        model.evaluate(x, y, verbose=0)
        model(x)
        with tf.GradientTape() as tape:
            inputs = tf.constant(x)
            tape.watch(inputs)
            outputs = model(inputs, training=False)
        tape.gradient(outputs, inputs)
        model.train_on_batch(x, y)
        assert not optimizer._attached.recorder.calls
    np.testing.assert_allclose(weights(model), reference["sampled"], rtol=1e-5)


def test_nothing_due_costs_nothing():
    """With long periods no statistics run, as counted by sampled targets."""
    ran = []

    class Counting(tfkfac.Categorical):
        def sample(self, outputs, uniforms):
            tf.py_function(lambda: ran.append(1), [], [])
            return super().sample(outputs, uniforms)

    model = sequential()
    optimizer = tfkfac.KFAC(
        0.05,
        damping=0.1,
        factor_update_period=4,
        inverse_update_period=8,
        likelihood=Counting(),
        model=model,
    )
    model.compile(optimizer, LOSS)
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0)
    assert len(ran) == STEPS // 4


def test_frozen_layers_and_thawing():
    """A frozen layer stays; it trains when it is thawed and recompiled."""
    model = sequential()
    initialize(model)
    conv = model.get_layer("conv")
    before = conv.kernel.numpy()
    conv.trainable = False
    model.compile(tfkfac.KFAC(0.05, damping=0.1, model=model), LOSS)
    model.fit(X, Y, batch_size=BATCH, verbose=0)
    np.testing.assert_array_equal(conv.kernel.numpy(), before)
    conv.trainable = True
    model.compile(tfkfac.KFAC(0.05, damping=0.1, model=model), LOSS)
    model.fit(X, Y, batch_size=BATCH, verbose=0)
    assert np.abs(conv.kernel.numpy() - before).max() > 1e-3


@pytest.mark.parametrize("use_ema", [False, True])
def test_thawing_between_attach_and_the_first_update(use_ema):
    model = sequential()
    initialize(model)
    conv = model.get_layer("conv")
    conv.trainable = False
    optimizer = tfkfac.KFAC(0.05, damping=0.1, model=model, use_ema=use_ema)
    conv.trainable = True
    model.compile(optimizer, LOSS)
    before = conv.kernel.numpy()
    model.fit(X, Y, batch_size=BATCH, verbose=0)
    assert np.abs(conv.kernel.numpy() - before).max() > 1e-3
    assert len(optimizer.momenta) == len(model.trainable_variables)


def test_one_trace():
    """The first step is traced once, as all variables are there before."""
    traces = []

    class Counting(tfkfac.Categorical):
        def sample(self, outputs, uniforms):
            traces.append(1)
            return super().sample(outputs, uniforms)

    model, optimizer = make(sequential, likelihood=Counting())
    model.compile(optimizer, LOSS)
    model.fit(X, Y, batch_size=BATCH, verbose=0)
    assert len(traces) == 1


def test_freezing_and_thawing_under_one_optimizer():
    model, optimizer = make(sequential)
    model.compile(optimizer, LOSS)
    model.train_on_batch(X[:BATCH], Y[:BATCH])
    conv = model.get_layer("conv")
    conv.trainable = False
    model.compile(optimizer, LOSS)
    before = conv.kernel.numpy()
    model.train_on_batch(X[:BATCH], Y[:BATCH])
    np.testing.assert_array_equal(conv.kernel.numpy(), before)
    conv.trainable = True
    model.compile(optimizer, LOSS)
    model.train_on_batch(X[:BATCH], Y[:BATCH])
    assert np.abs(conv.kernel.numpy() - before).max() > 1e-4


def test_unbuilt_model_registers_when_it_is_built(reference):
    model = Subclassed()
    optimizer = tfkfac.KFAC(
        0.05,
        damping=0.1,
        factor_update_period=2,
        inverse_update_period=3,
        model=model,
    )
    with pytest.raises(RuntimeError, match="not built"):
        optimizer.summary()
    initialize(model)
    model.compile(optimizer, LOSS)
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0)
    np.testing.assert_allclose(weights(model), reference["sampled"], rtol=1e-5)
