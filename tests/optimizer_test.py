"""The optimizer's contract: update rule details, errors, state, skipping."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype("float32")
Y = RNG.integers(0, 3, 16)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def small(name=None, **dense):
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="tanh", name="hidden"),
            keras.layers.Dense(3, name="logits", **dense),
        ],
        name=name,
    )


def compiled(model=None, loss=LOSS, compile_settings=None, **settings):
    model = model or small()
    settings = {"damping": 0.1, **settings}
    optimizer = tfkfac.KFAC(0.05, model=model, **settings)
    model.compile(optimizer, loss, **(compile_settings or {}))
    return model, optimizer


def flat(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])


# Bad arguments.


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"damping": 0}, r"damping=0.*greater than 0"),
        ({"damping": -1.0}, "damping"),
        ({"damping": float("nan")}, "damping"),
        ({"damping": "big"}, "damping='big'.*number or a schedule"),
        ({"momentum": -0.1}, "momentum"),
        ({"factor_decay": 1.0}, "factor_decay"),
        ({"factor_update_period": 0}, "factor_update_period=0.*positive"),
        ({"inverse_update_period": 1.5}, "inverse_update_period"),
        ({"kl_clip": 0}, "kl_clip"),
        ({"fisher": "true"}, "fisher='true'.*sampled"),
        ({"inverter": "svd"}, "inverter='svd'.*cholesky"),
        ({"refresh": "never"}, "refresh"),
        ({"max_skipped_steps": -1}, "max_skipped_steps"),
        ({"skip": ["conv"]}, "no layer 'conv'.*hidden"),
        ({"skip": "logits"}, "list of layer names"),
        ({"likelihood": "categorical"}, "likelihood.*tfkfac.Likelihood"),
        ({"model": "model"}, "keras.Model"),
        ({"clipnorms": 1.0}, "clipnorms"),
        ({"norm_curvature": "dense"}, "norm_curvature='dense'.*unitwise"),
        ({"norm_damping": 0.0}, "norm_damping"),
        ({"max_factor_size": 0}, "max_factor_size"),
    ],
)
def test_bad_arguments_are_named(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tfkfac.KFAC(**{"model": small(), **settings})


def test_model_without_trainable_variables():
    model = small()
    model.trainable = False
    with pytest.raises(ValueError, match="no trainable variables"):
        tfkfac.KFAC(model=model)


def test_step_without_a_model_says_how_to_attach():
    model = small()
    model.compile(tfkfac.KFAC(0.1), LOSS)
    with pytest.raises(RuntimeError, match="tfkfac.attach"):
        model.fit(X, Y, verbose=0)


def test_attach_needs_a_compiled_kfac():
    model = small()
    with pytest.raises(ValueError, match="not compiled"):
        tfkfac.attach(model)
    model.compile("adam", LOSS)
    with pytest.raises(TypeError, match="Adam"):
        tfkfac.attach(model)


def test_second_attach_is_reported_and_harmless(caplog):
    model, optimizer = compiled()
    model.train_on_batch(X, Y)
    state = optimizer.curvature.state()
    tfkfac.attach(model)
    assert "attached to" in caplog.text
    for name, value in optimizer.curvature.state().items():
        np.testing.assert_array_equal(value, state[name])
    model.train_on_batch(X, Y)


def test_one_optimizer_for_two_models():
    first, optimizer = compiled(small("first"))
    second = small("second")
    second.compile(optimizer, LOSS)
    with pytest.raises(ValueError, match="'first'.*already.*'second'"):
        tfkfac.attach(second)
    with pytest.raises(ValueError, match="not one of the model 'first'"):
        second.fit(X, Y, verbose=0)


def test_model_taken_over_by_another_optimizer(caplog):
    model, _ = compiled(compile_settings={"run_eagerly": True})
    model.train_on_batch(X, Y)
    new = tfkfac.KFAC(0.1, damping=0.1, model=model)
    assert "takes its place" in caplog.text
    with pytest.raises(RuntimeError, match="another KFAC"):
        model.train_on_batch(X, Y)
    model.compile(new, LOSS)
    model.train_on_batch(X, Y)


def test_update_without_a_forward_pass():
    model, optimizer = compiled()
    model.train_on_batch(X, Y)
    variables = model.trainable_variables
    with pytest.raises(RuntimeError, match="no forward pass"):
        optimizer.apply([tf.ones(v.shape) for v in variables], variables)


def test_loss_without_a_likelihood():
    model, _ = compiled(loss="hinge", fisher="sampled")
    y = RNG.normal(size=(16, 3)).astype("float32")
    with pytest.raises(ValueError, match="'hinge'.*likelihood"):
        model.fit(X, y, verbose=0)
    model, _ = compiled(loss="hinge", fisher="empirical")
    model.fit(X, y, verbose=0)
    model, _ = compiled(loss="hinge", likelihood=tfkfac.Gaussian())
    model.fit(X, y, verbose=0)


def test_several_replicas_are_refused(monkeypatch):
    model, _ = compiled(compile_settings={"run_eagerly": True})
    model.train_on_batch(X, Y)

    class TwoReplicas:
        num_replicas_in_sync = 2

    _, optimizer = compiled()
    monkeypatch.setattr(tf.distribute, "get_strategy", TwoReplicas)
    with pytest.raises(RuntimeError, match="tf.distribute with 2 replicas"):
        optimizer.apply([tf.zeros([4, 5])], [model.variables[0]])


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    with pytest.raises(RuntimeError, match="call tfkfac.init"):
        compiled()


# Coverage.


class Scale(keras.layers.Layer):
    """A layer type without a block."""

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")

    def call(self, inputs):
        return inputs * keras.ops.square(self.scale)


def test_unknown_layers_take_the_plain_gradient_and_are_reported(caplog):
    model = keras.Sequential(
        [keras.Input((4,)), Scale(name="scale"), keras.layers.Dense(3)]
    )
    model, optimizer = compiled(
        model, momentum=0.0, kl_clip=None, fallback="gradient"
    )
    lines = []
    optimizer.summary(print_fn=lines.append)
    text = "\n".join(lines)
    assert "no curvature block for Scale: what its call does is seen" in text
    assert "15 of 19 trainable parameters (78.9 %)" in text
    before = model.layers[0].scale.numpy()
    with tf.GradientTape() as tape:
        loss = LOSS(Y, model(X))
    gradient = tape.gradient(loss, model.layers[0].scale.value)
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(
        model.layers[0].scale.numpy(), before - 0.05 * gradient, rtol=1e-5
    )
    assert "Scale: its call uses it in Square" in caplog.text
    assert "plain gradient" in caplog.text


def test_skipped_layers_take_the_plain_gradient():
    model, optimizer = compiled(skip=["logits"], fallback="gradient")
    names = list(optimizer.curvature.state())
    assert any(x.startswith("hidden/") for x in names)
    assert not any(x.startswith("logits/") for x in names)
    model.train_on_batch(X, Y)


class Linear(keras.layers.Layer):
    """An own layer with s = W^T a."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 3), name="w")

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.w)


def test_a_block_for_an_own_layer(monkeypatch):
    class LinearBlock(tfkfac.KroneckerBlock):
        def __init__(self, layer):
            d_in, d_out = layer.w.shape
            super().__init__(layer, layer.w, None, d_in=d_in, d_out=d_out)

        def input_rows(self, inputs):
            return inputs[tf.newaxis]

        def output_rows(self, outputs):
            return outputs[tf.newaxis]

    monkeypatch.setattr(
        tfkfac.registry, "_BLOCKS", dict(tfkfac.registry._BLOCKS)
    )
    tfkfac.register(Linear, LinearBlock)
    results = []
    for layer in (Linear(), keras.layers.Dense(3, use_bias=False)):
        model = keras.Sequential([keras.Input((4,)), layer])
        model.set_weights([np.arange(12).reshape(4, 3) / 12])
        model, _ = compiled(model)
        for _ in range(3):
            model.train_on_batch(X, Y)
        results.append(flat(model))
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_register_refuses_what_is_no_class_of_its_kind():
    with pytest.raises(TypeError, match="CurvatureBlock"):
        tfkfac.register(Linear, Linear)
    with pytest.raises(TypeError, match="layers"):
        tfkfac.register(tfkfac.KroneckerBlock, tfkfac.KroneckerBlock)


def test_subclass_that_overrides_call_has_no_block():
    class Doubled(keras.layers.Dense):
        def call(self, inputs, training=None):
            return 2 * super().call(inputs, training=training)

    model = keras.Sequential([keras.Input((4,)), Doubled(3)])
    _, optimizer = compiled(model)
    lines = []
    optimizer.summary(print_fn=lines.append)
    assert "no curvature block for Doubled" in lines[0]


def test_attention_is_covered_and_every_factor_moves():
    inputs = keras.Input((6, 8))
    x = keras.layers.MultiHeadAttention(2, 4)(inputs, inputs)
    x = keras.layers.Dense(3)(keras.layers.Flatten()(x))
    model, optimizer = compiled(keras.Model(inputs, x))
    lines = []
    optimizer.summary(print_fn=lines.append)
    assert "(100.0 %) in 5 blocks" in lines[0]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 6, 8)).astype("float32")
    model.train_on_batch(x, Y)
    first = optimizer.curvature.state()
    model.train_on_batch(x[::-1] * 2, Y)
    for name, value in optimizer.curvature.state().items():
        if name.endswith("/moment"):
            assert np.abs(value - first[name]).max() > 1e-3 * value.max(), name


# Skipped steps.


def with_batch_norm():
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, name="hidden"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(3, name="logits", kernel_constraint="max_norm"),
        ]
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("eager", [False, True])
def test_a_bad_batch_changes_nothing_but_the_counters(bad, eager):
    """The run goes on as if the bad batch had never been."""
    poisoned = X.copy()
    poisoned[3, 1] = bad
    results = []
    for batches in ([X, X, X], [poisoned, X, X, poisoned, X]):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        model, optimizer = compiled(
            with_batch_norm(),
            compile_settings={"run_eagerly": eager},
            factor_update_period=2,
            inverse_update_period=2,
            use_ema=True,
        )
        for batch in batches:
            before = [v.numpy() for v in model.variables]
            model.train_on_batch(batch, Y)
            if batch is poisoned:
                after = [v.numpy() for v in model.variables]
                for a, b in zip(after, before):
                    np.testing.assert_array_equal(a, b)
        results.append([v.numpy() for v in model.variables])
        results[-1] += [v.numpy() for v in optimizer.momenta]
        results[-1] += optimizer._model_variables_moving_average
    assert int(optimizer.skipped_steps) == 2
    assert int(optimizer.iterations) == 5 and int(optimizer.updates) == 3
    for a, b in zip(*results):
        np.testing.assert_array_equal(a, b)


def test_too_many_skipped_steps_in_a_row_end_the_run():
    model, _ = compiled(max_skipped_steps=2)
    bad = np.full_like(X, np.nan)
    for batch in (bad, bad, X, bad, bad):
        model.train_on_batch(batch, Y)
    with pytest.raises(tf.errors.InvalidArgumentError, match="in a row"):
        model.train_on_batch(bad, Y)


# Hyperparameters.


def test_numbers_are_assigned_without_retracing():
    traces = []

    class Watched(tfkfac.Categorical):
        def sample(self, outputs, uniforms):
            traces.append(1)
            return super().sample(outputs, uniforms)

    model, optimizer = compiled(
        likelihood=Watched(), kl_clip=float("inf"), momentum=0.9
    )
    model.train_on_batch(X, Y)
    seen = len(traces)
    optimizer.damping, optimizer.momentum, optimizer.kl_clip = 1e6, 0.0, 1.0
    before = flat(model)
    model.train_on_batch(X, Y)
    assert len(traces) == seen
    assert float(optimizer.damping) == 1e6
    for _ in range(9):  # Until the next inversion takes the new damping.
        model.train_on_batch(X, Y)
    before = flat(model)
    model.train_on_batch(X, Y)
    assert np.abs(flat(model) - before).max() < 1e-6
    with pytest.raises(ValueError, match="damping"):
        optimizer.damping = -1.0


def test_schedules_cannot_be_assigned():
    schedule = keras.optimizers.schedules.PolynomialDecay(0.1, 10, 0.01)
    _, optimizer = compiled(damping=schedule, kl_clip=None)
    with pytest.raises(TypeError, match="schedule"):
        optimizer.damping = 0.2
    with pytest.raises(TypeError, match="kl_clip=None"):
        optimizer.kl_clip = 0.2


def test_period_schedules():
    """A schedule's period counts from the last time that the work was done."""
    ran = []

    class Noted(tfkfac.Categorical):
        def sample(self, outputs, uniforms):
            tf.py_function(lambda: ran.append(len(ran)), [], [])
            steps.append(int(optimizer.iterations))
            return super().sample(outputs, uniforms)

    steps = []
    model, optimizer = compiled(
        likelihood=Noted(),
        factor_update_period=lambda t: tf.where(t < 4, 2, 3),
        inverse_update_period=lambda t: tf.where(t < 4, 2, 3),
        compile_settings={"run_eagerly": True},
    )
    for _ in range(12):
        model.train_on_batch(X, Y)
    assert steps == [0, 2, 5, 8, 11]


def test_learning_rate_schedules_count_updates():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [1], [0.1, 0.0]
    )
    model = small()
    optimizer = tfkfac.KFAC(schedule, damping=0.1, momentum=0.0, model=model)
    model.compile(optimizer, LOSS)
    bad = np.full_like(X, np.nan)
    weights = [flat(model)]
    for batch in (bad, X, X, X):
        model.train_on_batch(batch, Y)
        weights.append(flat(model))
    moved = [np.abs(b - a).max() > 1e-6 for a, b in zip(weights, weights[1:])]
    assert moved == [False, True, True, False]


# Configuration and state.


def test_config_round_trip():
    settings = dict(
        learning_rate=keras.optimizers.schedules.PolynomialDecay(0.1, 10, 0.01),
        damping=0.02,
        momentum=0.8,
        factor_decay=0.9,
        factor_update_period=3,
        inverse_update_period=keras.optimizers.schedules.PolynomialDecay(
            5.0, 10, 1.0
        ),
        fisher="empirical",
        inverter=tfkfac.CholeskyInverter(pi=1.0),
        kl_clip=0.1,
        likelihood=tfkfac.Bernoulli(from_logits=False),
        skip=["hidden"],
        max_skipped_steps=3,
        seed=7,
        weight_decay=1e-4,
        clipnorm=1.0,
        use_ema=True,
    )
    config = tfkfac.KFAC(**settings).get_config()
    restored = tfkfac.KFAC.from_config(config)
    assert restored.get_config() == config
    assert restored.inverter.pi == 1.0
    assert restored.likelihood.from_logits is False
    again = keras.optimizers.deserialize(
        keras.optimizers.serialize(tfkfac.KFAC(**settings))
    )
    assert again.get_config() == config


def test_config_holds_every_argument():
    """None, too: what is left out would come back as the default."""
    parameters = inspect.signature(tfkfac.KFAC.__init__).parameters
    config = tfkfac.KFAC(kl_clip=None).get_config()
    left_out = {
        p.name
        for p in parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in config
    }
    assert left_out == {"model", "norm_damping"}
    assert parameters["norm_damping"].default is None
    assert tfkfac.KFAC.from_config(config).kl_clip is None


@pytest.mark.parametrize("name", ["damping", "learning_rate", "likelihood"])
def test_what_cannot_be_serialized_is_named_at_save(name, tmp_path):
    class Own(tfkfac.Categorical):
        pass

    value = Own() if name == "likelihood" else lambda t: 0.1
    model = small()
    optimizer = tfkfac.KFAC(**{"damping": 0.1, name: value, "model": model})
    model.compile(optimizer, LOSS)
    model.train_on_batch(X, Y)
    path = tmp_path / "model.keras"
    with pytest.raises(ValueError, match=f"{name}=.*cannot be serialized"):
        model.save(path)


def test_state_of_another_model_is_refused(tmp_path):
    model, _ = compiled()
    model.train_on_batch(X, Y)
    path = tmp_path / "model.keras"
    model.save(path)
    restored = keras.models.load_model(path)
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    other.compile(restored.optimizer, LOSS)
    with pytest.raises(ValueError, match="hidden/input_factor"):
        tfkfac.attach(other)


def test_saving_again_before_attaching_loses_nothing(tmp_path):
    model, optimizer = compiled()
    model.train_on_batch(X, Y)
    model.save(tmp_path / "a.keras")
    keras.models.load_model(tmp_path / "a.keras").save(tmp_path / "b.keras")
    restored = keras.models.load_model(tmp_path / "b.keras")
    tfkfac.attach(restored)
    saved = restored.optimizer.curvature.state()
    for name, value in optimizer.curvature.state().items():
        np.testing.assert_array_equal(value, saved[name])


def test_variables_are_those_that_build_can_know():
    """The same with and without a model, but for the curvature at the end."""
    _, optimizer = compiled()
    bare = tfkfac.KFAC(0.05, damping=0.1)
    bare.build(optimizer._attached.model.trainable_variables)
    optimizer.build(optimizer._attached.model.trainable_variables)
    names = [[v.name for v in o.variables] for o in (optimizer, bare)]
    names[1] += [v.name for v in optimizer.curvature.variables]
    assert names[0] == names[1]
    stored = [{}, {}]
    for o, store in zip((optimizer, bare), stored):
        o.save_own_variables(store)
    numbers = [[k for k in store if k.isdigit()] for store in stored]
    assert numbers[0] == numbers[1]
