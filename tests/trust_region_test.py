"""The bound that adapts (`kl_clip="auto"`), and what is given instead."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from tfkfac import trust_region

ETA, MU = 0.2, 0.5


def compiled(run_eagerly=False, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(4, "tanh"),
         keras.layers.Dense(3)]
    )  # fmt: skip
    optimizer = tfkfac.KFAC(ETA, momentum=MU, model=model, **options)
    model.compile(optimizer, "mse", run_eagerly=run_eagerly)
    return model, optimizer


def batch(seed):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(8, 5)).astype("float32"),
        3 * rng.normal(size=(8, 3)).astype("float32"),
    )


def flat(tensors):
    return np.concatenate([np.ravel(t) for t in tensors]).astype("float64")


def gradient(model, x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x) - y))
    return flat(tape.gradient(loss, model.trainable_variables))


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_the_bound_follows_the_slope_along_the_last_step(run_eagerly):
    """By the weights alone: m is what they moved by, V is computed apart."""
    model, optimizer = compiled(run_eagerly)
    bound, slope, m, raised = trust_region.START, 0.0, 0.0, 0
    for i in range(12):
        x, y = batch(i)
        V, before = gradient(model, x, y), flat(model.get_weights())
        model.train_on_batch(x, y)
        if i:
            r = np.clip(V @ m / abs(slope), -1, 1)
            change = np.exp(-trust_region.RATE * r)
            raised += change > 1
            bound *= change
        m = flat(model.get_weights()) - before
        slope = V @ m
        assert float(optimizer.kl_clip) == pytest.approx(bound, rel=1e-3)
    assert 0 < raised < 11  # It went up and down.


def test_in_float64():
    keras.config.set_floatx("float64")
    model, optimizer = compiled()
    for i in range(3):
        model.train_on_batch(*batch(i))
    assert optimizer.kl_clip.dtype == tf.float64
    assert float(optimizer.kl_clip) != trust_region.START


@pytest.mark.parametrize(
    "momentum, bound",
    [
        (0.0, 1e-3),
        (0.5, 1e-3),
        (0.9, 4e-5),
        (0.9999, 1e-8),
        (keras.optimizers.schedules.ExponentialDecay(0.9, 10, 0.9), 1e-3),
    ],
    ids=["none", "half", "more", "most", "schedule"],
)
def test_it_begins_lower_where_momentum_makes_more_of_a_step(momentum, bound):
    optimizer = tfkfac.KFAC(momentum=momentum)
    assert float(optimizer.kl_clip) == pytest.approx(bound)


@pytest.mark.parametrize("momentum", [1.0, 1e200])
def test_a_momentum_out_of_range_is_named(momentum):
    with pytest.raises(ValueError, match="momentum"):
        tfkfac.KFAC(momentum=momentum)


def test_a_number_given_or_assigned_stays():
    given, assigned = compiled(kl_clip=0.02), compiled()
    assigned[1].kl_clip = 0.02
    for i in range(4):
        for model, _ in (given, assigned):
            model.train_on_batch(*batch(i))
    for _, optimizer in (given, assigned):
        assert float(optimizer.kl_clip) == pytest.approx(0.02)
    np.testing.assert_array_equal(
        flat(given[0].get_weights()), flat(assigned[0].get_weights())
    )


def test_a_number_assigned_is_in_the_configuration(tmp_path):
    model, optimizer = compiled()
    assert optimizer.get_config()["kl_clip"] == "auto"
    model.train_on_batch(*batch(0))
    optimizer.kl_clip = 0.25
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    tfkfac.attach(loaded)
    made = tfkfac.KFAC.from_config(optimizer.get_config())
    for other in (made, loaded.optimizer):
        assert float(other.kl_clip) == other.get_config()["kl_clip"] == 0.25
    for i in range(3):
        model.train_on_batch(*batch(i))
        loaded.train_on_batch(*batch(i))
    assert float(loaded.optimizer.kl_clip) == 0.25
    np.testing.assert_array_equal(
        flat(model.get_weights()), flat(loaded.get_weights())
    )


@pytest.mark.parametrize("rate", [1e-6, 0.0])
def test_a_step_that_was_not_clipped_tells_nothing(rate):
    """Else the bound would fall in a pause, or at the end of a schedule."""
    model, optimizer = compiled()
    optimizer.learning_rate = rate
    for i in range(8):
        model.train_on_batch(*batch(i))
    assert float(optimizer.kl_clip) == pytest.approx(trust_region.START)


@pytest.mark.parametrize("assigned", [0.9, 0.3])
def test_resumed_at_its_least_it_goes_on(assigned, tmp_path):
    """Which follows the momentum, and is not in the state."""
    whole, optimizer = compiled()
    optimizer.momentum = assigned
    for i in range(80):  # What one batch gains the next one loses.
        x, y = batch(0)
        whole.train_on_batch(x, y * (-1) ** i)
    begin = trust_region.start(assigned)
    least = float(optimizer.kl_clip)
    assert least == pytest.approx(trust_region.PART * begin)
    whole.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    tfkfac.attach(resumed)
    for i in range(4):
        x, y = batch(0)
        for model in (whole, resumed):
            model.train_on_batch(x, y * (-1) ** i)
        assert resumed.optimizer.kl_clip == optimizer.kl_clip
    np.testing.assert_array_equal(
        flat(whole.get_weights()), flat(resumed.get_weights())
    )


def test_resumed_it_goes_on(tmp_path):
    whole, optimizer = compiled()
    for i in range(3):
        whole.train_on_batch(*batch(i))
    whole.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    tfkfac.attach(resumed)
    assert resumed.optimizer.get_config()["kl_clip"] == "auto"
    for i in range(3, 6):
        whole.train_on_batch(*batch(i))
        resumed.train_on_batch(*batch(i))
    assert float(resumed.optimizer.kl_clip) == float(optimizer.kl_clip)
    assert float(optimizer.kl_clip) != pytest.approx(trust_region.START)
    np.testing.assert_array_equal(
        flat(whole.get_weights()), flat(resumed.get_weights())
    )


@pytest.mark.parametrize("unit", [1.0, 1e4])
def test_targets_may_have_a_large_unit(unit):
    """A squared error of y in thousands has a million times the nats."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 5)).astype("float32")
    y = unit * np.tanh(x @ rng.normal(size=(5, 3))).astype("float32")
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(16, "tanh"),
         keras.layers.Dense(3)]
    )  # fmt: skip
    model.compile(tfkfac.KFAC(model=model), "mse")
    losses = model.fit(
        x, y, batch_size=32, epochs=30, shuffle=False, verbose=0
    ).history["loss"]
    assert losses[-1] < 0.05 * np.var(y)


def region_and_bound():
    made = []

    def add_variable(**arguments):
        made.append(
            keras.Variable(
                arguments["initializer"],
                shape=arguments["shape"],
                dtype=arguments.get("dtype", "float32"),
            )
        )
        return made[-1]

    return trust_region.TrustRegion(add_variable, 0.5), made[0]


def adapt(region, slope):
    region.note(tf.constant(-1.0, tf.float64), tf.constant(True))
    region.adapt(tf.constant(slope, tf.float64), tf.constant(0.5, tf.float64))


def test_it_stays_within_its_bounds():
    region, bound = region_and_bound()
    least = trust_region.PART * trust_region.START
    for slope, end in ((1.0, least), (-1.0, trust_region.MOST)):
        for _ in range(500):
            adapt(region, slope)
        assert float(bound) == pytest.approx(end)


def test_a_step_to_the_minimum_leaves_it():
    """Were it raised then, it would rise on and on where there is noise: the
    slope before a step is that of its own batch, and mostly noise."""
    region, bound = region_and_bound()
    for slope in (0.3, -0.3, 0.0, 0.0):
        adapt(region, slope)
    assert float(bound) == pytest.approx(trust_region.START)


def test_a_schedule_may_end_the_clip():
    model, optimizer = compiled(
        kl_clip=lambda t: tf.where(t < 1, 1e-3, float("inf"))
    )
    for i in range(3):
        model.train_on_batch(*batch(i))
    assert int(optimizer.skipped_steps) == 0
