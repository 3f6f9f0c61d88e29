"""What no block takes: Adam in float64 NumPy, and in every kind of step."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from keras import layers
from oracle import Case, cross_entropy

import tfkfac

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 8, 4))
Y = RNG.integers(0, 3, (4, 8))


class Scale(layers.Layer):
    """Without a block; its variable has no name of its own."""

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")

    def call(self, inputs):
        return inputs * keras.ops.square(self.scale)


def loose_bias(**options):
    """Three updates of a net of which the bias of one layer has no block."""
    rng = np.random.default_rng(1)
    head = layers.EinsumDense(
        "ab,bcd->acd", output_shape=(2, 3), bias_axes="c", activation="tanh"
    )
    return Case(
        [head, layers.Flatten(), layers.Dense(3)],
        x=rng.normal(size=(12, 5)),
        y=rng.integers(0, 3, 12),
        loss=cross_entropy(),
        batch=4,
        options={
            "learning_rate": 0.2,
            "damping": 0.1,
            "inverse_update_period": 2,
            "weight_decay": 0.1,
            "kl_clip": 1e-3,
            **options,
        },
    )


def decaying(t):
    return 0.2 / (1.0 + tf.cast(t, tf.float64))


@pytest.mark.parametrize(
    "options",
    [
        {"global_clipnorm": 0.1, "kl_clip": 1e-5},
        {"fallback_learning_rate": 0.03, "inverter": "eigen"},
        {"fallback": "gradient"},
    ],
    ids=["clipped", "rate", "gradient"],
)
def test_updates(float64, options):
    """The KL clip and its sum are without the fallback; decay is eta wd."""
    case = loose_bias(**options)
    case.run_eagerly = "clipped" in str(options)
    errors = case.run()
    assert case.kfac.nu < 0.9
    assert max(errors) < 1e-9


def test_rate_follows_decays_of_the_learning_rate(float64):
    """And not a warm-up, in which the rate is the largest one so far."""
    case = loose_bias()
    case.options.pop("learning_rate")
    rates = [0.01, 0.2, 0.05]
    case.keras_options["learning_rate"] = lambda t: tf.gather(
        tf.constant(rates, tf.float64), t
    )
    case.mirror_options["learning_rate"] = lambda t: rates[t]
    assert max(case.run()) < 1e-9


def test_schedule_of_its_own(float64):
    case = loose_bias()
    case.keras_options["fallback_learning_rate"] = decaying
    case.mirror_options["fallback_learning_rate"] = lambda t: 0.2 / (1 + t)
    assert max(case.run()) < 1e-9


def make(policy=None, **options):
    """A net whose first layers have no block."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    if policy:
        keras.config.set_dtype_policy(policy)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            Scale(name="scale"),
            layers.Dense(5, "tanh", name="skipped"),
            layers.Dense(3, name="logits"),
        ]
    )
    options = {"damping": 0.1, "skip": ["skipped"], **options}
    optimizer = tfkfac.KFAC(0.1, model=model, **options)
    model.compile(optimizer, cross_entropy())
    return model


def weights(model):
    return [v.numpy() for v in model.trainable_variables]


def gradients(model, x, y):
    with tf.GradientTape() as tape:
        loss = model.loss(y, model(x, training=True))
    return [g.numpy() for g in tape.gradient(
        loss, [v.value for v in model.trainable_variables]
    )]  # fmt: skip


def follow(model, batches):
    """The largest error of the first three variables after updates."""
    adam = [reference.Adam() for _ in range(3)]
    expected = weights(model)[:3]
    for x, y in batches:
        V = gradients(model, x, y)[:3]
        model.train_on_batch(x, y)
        pairs = zip(expected, adam, V)
        expected = [w + a.step(g, 3e-3) for w, a, g in pairs]
    return max(
        np.abs(w - e).max() for w, e in zip(weights(model)[:3], expected)
    )


def test_skipped_layers_and_layers_without_a_block(float64):
    assert follow(make(), zip(X, Y)) < 1e-12


ADAM = [
    {},
    {"clipnorm": 0.05},
    {"global_clipnorm": 0.05, "gradient_accumulation_steps": 2},
    {"weight_decay": 0.1},
    {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3},
]


@pytest.mark.parametrize("options", ADAM, ids=lambda x: "-".join(x) or "plain")
def test_a_model_without_a_block_trains_as_with_keras_adam(float64, options):
    """All of its layers are skipped; Keras has its numbers in float32."""
    own = make(skip=["scale", "skipped", "logits"], **options)
    other = keras.models.clone_model(own)
    other.set_weights(own.get_weights())
    if "weight_decay" in options:  # Of both a step takes eta wd off.
        options = {"weight_decay": 0.1 * 0.1 / 3e-3}
    other.compile(keras.optimizers.Adam(3e-3, **options), cross_entropy())
    own.run_eagerly = other.run_eagerly = not options
    for x, y in zip(X, Y):
        own.train_on_batch(x, y)
        other.train_on_batch(x, y)
    for a, b in zip(weights(own), weights(other)):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_a_model_without_a_block_skips_what_is_not_finite():
    """And its other variables go back to what they were."""
    model = keras.Sequential(
        [keras.Input((4,)), layers.BatchNormalization(), layers.Dense(3)]
    )
    names = [x.name for x in model.layers]
    optimizer = tfkfac.KFAC(0.1, model=model, skip=names)
    model.compile(optimizer, cross_entropy())
    model.train_on_batch(X[0], Y[0])
    before = model.get_weights()
    model.train_on_batch(X[1] * np.nan, Y[1])
    assert int(optimizer.skipped_steps) == 1
    for a, b in zip(before, model.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_a_model_without_a_block_that_is_not_called_is_told():
    model = make(skip=["scale", "skipped", "logits"])
    V = [tf.zeros(v.shape) for v in model.trainable_variables]
    with pytest.raises(RuntimeError, match="saw no forward pass"):
        model.optimizer.apply(V, model.trainable_variables)


def test_micro_steps_are_one_update(float64):
    whole, parts = make(), make(gradient_accumulation_steps=2)
    for x, y in zip(X, Y):
        whole.train_on_batch(x, y)
        for half in (slice(0, 4), slice(4, 8)):
            parts.train_on_batch(x[half], y[half])
    for a, b in zip(weights(whole), weights(parts)):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_skipped_step_moves_nothing():
    model = make()
    model.train_on_batch(X[0], Y[0])
    before = weights(model)
    state = model.optimizer.curvature.state()
    model.train_on_batch(X[1] * np.nan, Y[1])
    assert int(model.optimizer.skipped_steps) == 1
    for a, b in zip(before, weights(model)):
        np.testing.assert_array_equal(a, b)
    for name, value in model.optimizer.curvature.state().items():
        if name != "updates":
            np.testing.assert_array_equal(value, state[name], name)


def test_resumes_bit_for_bit(tmp_path):
    """From files, from a copy of the variables, and from a state tree."""
    whole = make()
    for x, y in zip(X[:2], Y):
        whole.train_on_batch(x, y)
    file = tmp_path / "a.weights.h5"
    whole.save_weights(file)
    found = [make() for _ in range(3)]
    found[0].load_weights(file)
    for own, value in (
        *zip(found[1].variables, whole.variables, strict=True),
        *zip(
            found[1].optimizer.variables, whole.optimizer.variables, strict=True
        ),
    ):
        own.assign(value)
    found[2].set_state_tree(whole.get_state_tree())
    for model in (whole, *found):
        for x, y in zip(X[2:], Y[2:]):
            model.train_on_batch(x, y)
    for model in found:
        for a, b in zip(weights(whole), weights(model)):
            np.testing.assert_array_equal(a, b)


def test_files_without_moments_start_them_at_zero(tmp_path):
    """And files with them load where the plain gradient is taken."""
    old, new = make(fallback="gradient"), make()
    for model in (old, new):
        model.train_on_batch(X[0], Y[0])
        model.save_weights(tmp_path / f"{model is old}.weights.h5")
    old.load_weights(tmp_path / "False.weights.h5")
    new.load_weights(tmp_path / "True.weights.h5")
    state = new.optimizer.curvature.state()
    assert not state["skipped/variable_0/second_moment"].any()
    assert int(new.optimizer.curvature.updates.numpy()) == 1
    old.train_on_batch(X[1], Y[1])
    assert follow(new, [(X[1], Y[1])]) < 1e-6


def test_thawed_layers_begin_with_their_bias_corrected():
    model = make()
    model.layers[0].trainable = False
    model.compile(model.optimizer, model.loss)
    # Layers thawed before the first update are known at once.
    model.layers[0].trainable = True
    model.compile(model.optimizer, model.loss)
    assert follow(model, zip(X, Y)) < 1e-6


def test_held_by_the_model_itself(tmp_path):
    @keras.saving.register_keras_serializable(package="fallback_test")
    class Own(keras.Model):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.out = layers.Dense(3, name="out")

        def build(self, shape):
            self.shift = self.add_weight(shape=(4,), initializer="zeros")
            self.out.build(shape)

        def call(self, inputs):
            return self.out(inputs + self.shift)

    found = []
    for fallback in ("adam", "adam", "gradient"):
        model = Own()
        model.build((None, 4))
        optimizer = tfkfac.KFAC(0.1, model=model, fallback=fallback)
        model.compile(optimizer, cross_entropy())
        found.append(model)
    found[0].train_on_batch(X[0], Y[0])
    found[0].save_weights(tmp_path / "own.weights.h5")
    for model in found[1:]:
        model.load_weights(tmp_path / "own.weights.h5")
    for model in found:
        model.train_on_batch(X[1], Y[1])
    for a, b in zip(weights(found[0]), weights(found[1])):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(policy):
    """float16 comes with a loss scale."""
    model = make(policy)
    before = weights(model)
    for x, y in zip(X, Y):
        model.train_on_batch(x, y)
    for a, b in zip(before, weights(model)):
        assert np.isfinite(b).all() and not np.array_equal(a, b)


def test_average_of_weights_and_constraints():
    model = make(use_ema=True, ema_momentum=0.5)
    model.layers[0].scale.constraint = keras.constraints.MaxNorm(1.0, axis=0)
    start = weights(model)[1]
    model.train_on_batch(X[0], Y[0])
    assert np.linalg.norm(weights(model)[0]) < 1 + 1e-6
    first = weights(model)[1]
    model.train_on_batch(X[1], Y[1])
    second = weights(model)[1]
    model.optimizer.finalize_variable_values(model.trainable_variables)
    np.testing.assert_allclose(
        weights(model)[1], (first + second) / 2, rtol=1e-5, atol=1e-7
    )
    assert not np.array_equal(start, first)


def test_the_rate_is_assigned_without_another_trace():
    traces = []

    class Counted(layers.Layer):
        def call(self, inputs):
            traces.append(self)
            return inputs

    model = make(fallback_learning_rate=1e-3)
    model.add(Counted())
    model.compile(model.optimizer, model.loss)
    model.train_on_batch(X[0], Y[0])
    count = len(traces)
    model.optimizer.fallback_learning_rate = 1e-30
    before = weights(model)
    model.train_on_batch(X[1], Y[1])
    assert len(traces) == count
    np.testing.assert_array_equal(before[0], weights(model)[0])
    assert not np.array_equal(before[3], weights(model)[3])
    assert float(model.optimizer.fallback_learning_rate) < 1e-29
    with pytest.raises(TypeError, match="fallback_learning_rate=None"):
        make().optimizer.fallback_learning_rate = 0.1


def test_arguments():
    optimizer = tfkfac.KFAC(fallback_learning_rate=0.01)
    config = optimizer.get_config()
    assert config["fallback"] == "adam"
    assert tfkfac.KFAC.from_config(config).get_config() == config
    with pytest.raises(ValueError, match="fallback='sgd'"):
        tfkfac.KFAC(fallback="sgd")
    with pytest.raises(ValueError, match="fallback_learning_rate=0.1.*adam"):
        tfkfac.KFAC(fallback="gradient", fallback_learning_rate=0.1)
    with pytest.raises(ValueError, match="fallback_learning_rate"):
        tfkfac.KFAC(fallback_learning_rate=-1.0)


@pytest.mark.parametrize(
    "fallback, name", [("adam", "Adam"), ("gradient", "plain gradient")]
)
def test_report_names_the_update(fallback, name):
    lines = []
    make(fallback=fallback).optimizer.summary(lines.append)
    (text,) = lines
    assert f"kernel: {name} (named in skip)" in text
    assert f"variable: {name} (no curvature block for Scale: " in text
    assert ("moments of the fallback: 0.00 MiB" in text) == (name == "Adam")
