"""Numbers and schedules as arguments: bounds, when work is due, files."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from classifier import X, Y, compiled

import tfkfac
from tfkfac import assignable, schedules
from tfkfac.schedules import Hyperparameter, Period, serialize


def test_schedules_in_a_saved_optimizer(tmp_path):
    """They are numbers of the update in KFAC, and come back from a file."""
    rate = schedules.EpochPolynomialDecay(0.1, 2.5, start=1, end=4, power=2)
    settings = {
        "learning_rate": rate,
        "momentum": schedules.CoupledMomentum(0.9, rate),
        "damping": schedules.WarmupDamping(0.1, 1e-3, 20),
        "norm_damping": schedules.WarmupDamping(1.6, 16e-3, 20),
    }
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(tfkfac.KFAC(**settings, model=model), "mse")
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    tfkfac.attach(model)
    for t in range(5):
        damping = model.optimizer.at_update("damping")
        norm_damping = model.optimizer.at_update("norm_damping")
        eta = 0.1 * min(1, (4 - t / 2.5) / 3) ** 2
        expected = 1e-3 * (1 + 99 * (1 - 0.2) ** t)
        assert float(model.optimizer.learning_rate) == pytest.approx(eta)
        assert float(model.optimizer.momentum) == pytest.approx(9 * eta)
        assert float(damping) == pytest.approx(expected)
        # The damping of normalization layers stays 16 times as large.
        assert float(norm_damping) == pytest.approx(16 * expected)
        model.train_on_batch(np.ones([4, 2]), np.ones([4, 1]))


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


def variable(**options):
    return keras.optimizers.SGD().add_variable(**options)


def test_periods_between_integers_are_rounded_up():
    period = Period("p", lambda t: 2.5, add_variable=variable)
    done = []
    for t in range(7):
        if period.due(tf.constant(t, tf.int64)):
            period.done(t)
            done.append(t)
    assert done == [0, 3, 6] and period.number is None


@pytest.mark.parametrize(
    "gap, due",
    [(float("inf"), [0]), (2.0**63, [0]), (float("nan"), [0, 1, 2, 3])],
)
def test_a_period_without_end_is_due_once_and_one_of_nan_always(gap, due):
    period = Period("p", lambda t: gap, add_variable=variable)
    done = []
    for t in range(4):
        if period.due(tf.constant(t, tf.int64)):
            period.done(t)
            done.append(t)
    assert done == due


def test_periods_of_a_number_are_its_multiples():
    period = Period("p", 3, add_variable=variable)
    due = [t for t in range(8) if period.due(tf.constant(t, tf.int64))]
    assert due == [0, 3, 6] and period.number == period.config() == 3
    period.done(1)  # It goes by the count alone.
    assert not period.due(tf.constant(4, tf.int64))


@pytest.mark.parametrize(
    "value", [0, -2, 1.5, True, "ten", float("inf"), 2**70, lambda: 5]
)
def test_what_is_no_period(value):
    with pytest.raises(ValueError, match="KFAC.p=.*positive integer"):
        Period("p", value, add_variable=variable)


def number(value, minimum=0.0, exclusive=False):
    return Hyperparameter(
        "mu", value, minimum=minimum, exclusive=exclusive, add_variable=variable
    )


def test_numbers_keep_float64():
    """By Keras' own initializer 0.1 would go by way of float32."""
    keras.config.set_floatx("float64")
    for value in (0.1, lambda t: 0.1):
        found = number(value).at(tf.constant(0), tf.float64)
        assert found.dtype == tf.float64 and float(found) == 0.1


def test_bounds_of_numbers():
    """The least one is allowed, unless it is excluded; also when assigned."""
    at_least, greater = number(0.0), number(1.0, exclusive=True)
    for value in (-1e-3, float("nan")):
        with pytest.raises(ValueError, match="mu=.*at least 0.0"):
            at_least.assign(value)
    with pytest.raises(ValueError, match="mu=0.*greater than 0.0"):
        greater.assign(0)
    assert at_least.config() == 0.0 and greater.config() == 1.0
    greater.assign(0.5)
    assert greater.config() == 0.5
    for value in (True, "big", None, lambda: 0.1):
        with pytest.raises(ValueError, match="a number or a schedule"):
            number(value)


def test_schedules_are_evaluated_and_not_assigned():
    schedule = number(lambda t: tf.cast(t, tf.float32) / 4)
    found = schedule.at(tf.constant(3), tf.float64)
    assert found.dtype == tf.float64 and float(found) == 0.75
    with pytest.raises(TypeError, match="was given a schedule"):
        schedule.assign(0.2)
    with pytest.raises(ValueError, match="mu=.*cannot be serialized"):
        schedule.config()


def test_what_a_file_can_hold():
    for value in (None, True, 3, 0.5, "owner"):
        assert serialize("x", value) is value
    decay = keras.optimizers.schedules.PolynomialDecay(0.1, 10, 0.01)
    again = keras.saving.deserialize_keras_object(serialize("x", decay))
    assert again.get_config() == decay.get_config()

    @keras.saving.register_keras_serializable(package="hyperparameters_test")
    class Bare:
        """It is known, and has no configuration."""

        def get_config(self):
            raise NotImplementedError

    with pytest.raises(ValueError, match="needs get_config"):
        serialize("x", Bare())


# Numbers that no step could be made with.


@pytest.mark.parametrize(
    "name, value",
    [
        ("learning_rate", -0.1),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("momentum", 1.5),
        ("momentum", float("inf")),
        ("damping", float("inf")),
        ("norm_damping", float("inf")),
        ("embedding_damping", -1.0),
        ("factor_decay", 1.0),
        ("kl_clip", float("nan")),
        ("fallback_learning_rate", float("inf")),
        ("weight_decay", float("nan")),
        ("weight_decay", -0.1),
        ("clipnorm", float("nan")),
        ("clipnorm", 0.0),
        ("global_clipnorm", 0.0),
        ("clipvalue", -1.0),
        # As float32 rounds them.
        ("learning_rate", 1e39),
        ("damping", 1e-50),
        ("momentum", 1 - 1e-12),
        ("kl_clip", 1e-50),
        ("clipnorm", 1e-50),
        ("weight_decay", 1e39),
    ],
)
def test_numbers_are_refused_where_they_enter(name, value):
    with pytest.raises(ValueError, match=f"{name}"):
        tfkfac.KFAC(**{name: value})


@pytest.mark.parametrize(
    "name, value",
    [
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", -1.0),
        ("momentum", 1.0),
        ("damping", float("inf")),
        ("kl_clip", float("nan")),
        ("learning_rate", "no"),
        ("damping", "no"),
        ("damping", "0.1"),
        ("momentum", False),
        ("learning_rate", np.float64(1e-60)),
        ("momentum", None),
        ("factor_decay", 1.0),
        ("norm_damping", 0.0),
    ],
)
def test_numbers_are_refused_where_they_are_assigned(name, value):
    optimizer = tfkfac.KFAC(kl_clip=0.1, damping=0.1, norm_damping=0.1)
    before = float(getattr(optimizer, name))
    with pytest.raises(ValueError, match=f"{name}="):
        setattr(optimizer, name, value)
    assert float(getattr(optimizer, name)) == before
    setattr(optimizer, name, 0.25)
    assert float(getattr(optimizer, name)) == 0.25


@pytest.mark.parametrize(
    "name",
    ["norm_damping", "kl_clip", "fallback_learning_rate", "embedding_damping"],
)
def test_what_was_none_is_not_assigned(name):
    optimizer = tfkfac.KFAC(damping=0.1, **{name: None})
    assert getattr(optimizer, name) is None
    with pytest.raises(TypeError, match=f"{name}=None.*give a number"):
        setattr(optimizer, name, 0.1)


@pytest.mark.parametrize(
    "name, value",
    [
        ("inverse_update_period", 5),
        ("refresh", "drift"),
        ("fisher", "empirical"),
        ("skip", ["hidden"]),
        ("max_skipped_steps", 3),
        ("norm_curvature", "full"),
    ],
)
def test_what_is_fixed_is_not_assigned(name, value):
    optimizer = tfkfac.KFAC()
    with pytest.raises(AttributeError, match=f"{name}.*make one with {name}="):
        setattr(optimizer, name, value)


def test_every_argument_is_assigned_or_fixed():
    """Or it is one of Keras' own, which says what it does."""
    known = {*assignable.FIXED, "learning_rate", "name", "kwargs", "self"}
    arguments = set(inspect.signature(tfkfac.KFAC.__init__).parameters)
    for name in arguments - known:
        assert isinstance(getattr(tfkfac.KFAC, name), property), name


def test_no_clip_is_infinity():
    assert float(tfkfac.KFAC(kl_clip=float("inf")).kl_clip) == float("inf")


@pytest.mark.parametrize(
    "name, bad, accumulated",
    [
        ("learning_rate", float("nan"), None),
        ("learning_rate", -0.1, 2),
        ("damping", float("inf"), 2),
        ("damping", 0.0, None),
        ("momentum", 1.5, None),
        ("factor_decay", 1.0, None),
        ("kl_clip", float("nan"), 2),
        ("kl_clip", 0.0, None),
    ],
)
def test_a_schedule_out_of_its_range_costs_its_update_and_is_named(
    name, bad, accumulated, capfd
):
    """Nothing moves in update 1, which is tried with each batch."""

    def schedule(update):
        return tf.where(tf.equal(update, 1), bad, 0.1)

    model, optimizer = compiled(
        **{name: schedule}, gradient_accumulation_steps=accumulated
    )

    def train():
        for _ in range(accumulated or 1):
            model.train_on_batch(X, Y)

    train()
    assert "skipped" not in capfd.readouterr().err
    before = [v.numpy() for v in optimizer.momenta]
    weights = model.get_weights()
    train()
    train()
    error = capfd.readouterr().err
    assert f"out of its range: {name}\n" in error
    assert "update 1 is skipped" in error
    for a, b in zip(weights, model.get_weights()):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(before, optimizer.momenta):
        np.testing.assert_array_equal(a, b)
    assert int(optimizer.skipped_steps) == 2


@pytest.mark.parametrize(
    "name, bad",
    [("learning_rate", np.nan), ("damping", -1.0), ("momentum", np.inf)],
)
def test_a_number_out_of_range_in_its_variable_is_found(name, bad, capfd):
    model, optimizer = compiled(compile_settings={"run_eagerly": True})
    model.train_on_batch(X, Y)
    weights = model.get_weights()
    (variable,) = [v for v in optimizer.variables if v.name == name]
    variable.assign(bad)
    model.train_on_batch(X, Y)
    assert f"range: {name}" in capfd.readouterr().err
    for a, b in zip(weights, model.get_weights()):
        np.testing.assert_array_equal(a, b)
    setattr(optimizer, name, 0.1)
    model.train_on_batch(X, Y)
    assert any((a != b).any() for a, b in zip(weights, model.get_weights()))


@pytest.mark.parametrize(
    "name, value",
    [("weight_decay", float("nan")), ("clipnorm", 0.0), ("ema_momentum", 2)],
)
def test_numbers_of_keras_that_are_assigned_are_refused_in_the_step(
    name, value
):
    model, optimizer = compiled(
        weight_decay=1e-3, clipnorm=1.0, use_ema=True, ema_momentum=0.9
    )
    before = model.get_weights()
    setattr(optimizer, name, value)
    with pytest.raises(ValueError, match=f"KFAC\\({name}="):
        model.train_on_batch(X, Y)
    for a, b in zip(before, model.get_weights()):
        np.testing.assert_array_equal(a, b)
