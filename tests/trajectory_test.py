"""Weights after updates of every kind, against K-FAC in float64 NumPy."""

import keras
import numpy as np
import pytest
from keras import layers
from oracle import Case, cross_entropy

import tfkfac

OPTIONS = {
    "learning_rate": 0.1,
    "damping": 0.05,
    "momentum": 0.9,
    "factor_decay": 0.95,
    "factor_update_period": 1,
    "inverse_update_period": 1,
}
SCHEDULES = keras.optimizers.schedules


def of_update(function):
    """The function of a tensor that stands for one of a number."""
    return lambda t: function(keras.ops.cast(t, "float64"))


def convolutional(steps=10, batch=4, **arguments):
    """A case of several updates of a small convolutional network."""
    rng = np.random.default_rng(0)
    count = steps * batch
    options = OPTIONS | arguments.pop("options", {})
    stack = [
        layers.Conv2D(3, 3, strides=2, padding="same", activation="relu"),
        layers.Flatten(),
        layers.Dense(4, activation="tanh"),
        layers.Dense(3),
    ]
    return Case(
        stack,
        x=rng.normal(size=(count, 5, 4, 2)),
        y=rng.integers(0, 3, size=count),
        weights=rng.uniform(0.5, 2, size=count),
        batch=batch,
        loss=cross_entropy(),
        options=options,
        **arguments,
    )


@pytest.mark.parametrize("run_eagerly", [True, False])
@pytest.mark.parametrize("inverter", ["cholesky", "eigen"])
def test_ten_updates(float64, run_eagerly, inverter):
    """Ten updates in graph mode and eagerly."""
    case = convolutional(run_eagerly=run_eagerly)
    case.options["inverter"] = inverter
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("inverter", ["cholesky", "eigen"])
@pytest.mark.parametrize("steps", [1, 10])
def test_float32(steps, inverter):
    """float32 keeps 1e-5 where the damped factors are well conditioned."""
    case = convolutional(steps, batch=8, run_eagerly=steps == 1)
    case.x = case.x.astype("float32")
    case.options |= {"damping": 0.5, "inverter": inverter}
    errors = case.run()
    assert case.condition() <= 100
    assert max(errors) < 1e-5


def test_last_batch_is_smaller(float64):
    """N and R are those of each batch."""
    case = convolutional(4, batch=4, run_eagerly=False)
    case.x, case.y, case.weights = case.x[:13], case.y[:13], case.weights[:13]
    assert max(case.run()) < 1e-9


def test_small_damping(float64):
    """float64 keeps 1e-9 where the damped factors are badly conditioned."""
    case = convolutional(3, options={"damping": 1e-5, "learning_rate": 1e-3})
    errors = case.run()
    assert case.condition() > 1e3
    assert max(errors) < 1e-9


@pytest.mark.parametrize("pi", [1.0, 0.3])
def test_fixed_pi(float64, pi):
    """CholeskyInverter(pi) fixes pi."""
    case = convolutional(3)
    case.keras_options = {"inverter": tfkfac.CholeskyInverter(pi=pi)}
    case.mirror_options = {"pi": pi}
    assert max(case.run()) < 1e-9


def test_pi_where_a_trace_is_0(float64):
    """Before any input that is not 0, pi is 1."""
    rng = np.random.default_rng(0)
    case = Case(
        [layers.Dense(3, use_bias=False)],
        x=np.concatenate([np.zeros((4, 5)), rng.normal(size=(4, 5))]),
        y=rng.normal(size=(8, 3)),
        batch=4,
        loss=keras.losses.MeanSquaredError(),
        options=OPTIONS
        | {"factor_update_period": 5, "inverse_update_period": 5},
    )
    assert max(case.run()) < 1e-9


PERIODS = [
    (1, 3, "cholesky"),
    (2, 4, "cholesky"),
    (1, 20, "cholesky"),
    (3, 1, "cholesky"),
    (2, 3, "cholesky"),
    (4, 6, "cholesky"),
    (1, 3, "eigen"),
    (3, 2, "eigen"),
]


@pytest.mark.parametrize("factor, inverse, inverter", PERIODS)
def test_periods(float64, factor, inverse, inverter):
    """Multiples of the periods are due; damping freezes for cholesky only."""
    case = convolutional(8)
    case.options |= {
        "factor_update_period": factor,
        "inverse_update_period": inverse,
        "inverter": inverter,
    }
    case.options.pop("damping")
    case.keras_options["damping"] = of_update(lambda t: 0.2 * 0.8**t)
    case.mirror_options["damping"] = lambda t: 0.2 * 0.8**t
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_period_schedule(float64, run_eagerly):
    """With a schedule, t >= last + period(t) is due."""
    case = convolutional(10, run_eagerly=run_eagerly)
    case.keras_options = {
        "factor_update_period": lambda t: 1 + t // 4,
        "inverse_update_period": lambda t: 4 - t // 3,
    }
    case.mirror_options = dict(case.keras_options)
    for key in case.keras_options:
        case.options.pop(key)
    assert max(case.run()) < 1e-9


# Functions of the update, for tensors and for numbers.
FUNCTIONS = {
    "damping": lambda t: 0.5 * 0.7**t,
    "momentum": lambda t: 1 - 0.5 / (1 + t),
    "factor_decay": lambda t: 1 - 1 / (1 + t),
    "kl_clip": lambda t: 1e-3 / (1 + t) ** 2,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_the_update(float64, name):
    """Numbers may be functions, evaluated at the update count from 0."""
    case = convolutional(4)
    case.options.pop(name, None)
    case.mirror_options[name] = FUNCTIONS[name]
    case.keras_options[name] = of_update(FUNCTIONS[name])
    assert max(case.run()) < 1e-9


def test_functions_in_graph_mode(float64):
    """A traced function is evaluated anew at each update."""
    case = convolutional(6, run_eagerly=False, mirror_options=FUNCTIONS)
    for name, function in FUNCTIONS.items():
        case.options.pop(name, None)
        case.keras_options[name] = of_update(function)
    assert max(case.run()) < 1e-9


# With values and results that float32 holds exactly, as Keras computes in it.
KERAS_SCHEDULES = {
    "learning_rate": lambda: SCHEDULES.ExponentialDecay(0.25, 1, 0.5),
    "damping": lambda: SCHEDULES.ExponentialDecay(0.5, 1, 0.5),
    "momentum": lambda: SCHEDULES.PiecewiseConstantDecay(
        [1, 3], [0.5, 0.75, 0.875]
    ),
}
KERAS_VALUES = {
    "learning_rate": lambda t: 0.25 * 0.5**t,
    "damping": lambda t: 0.5 * 0.5**t,
    "momentum": lambda t: 0.5 if t <= 1 else 0.75 if t <= 3 else 0.875,
}


@pytest.mark.parametrize("name", KERAS_SCHEDULES)
def test_keras_schedules(float64, name):
    """So may they be Keras' schedules."""
    case = convolutional(5)
    case.options.pop(name)
    case.keras_options[name] = KERAS_SCHEDULES[name]()
    case.mirror_options[name] = KERAS_VALUES[name]
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("factor_decay, momentum", [(0, 0.5), (0.5, 0)])
def test_averages(float64, factor_decay, momentum):
    """The debiased average of factors, and momentum after it."""
    case = convolutional(4)
    case.options |= {"factor_decay": factor_decay, "momentum": momentum}
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("inverter", ["cholesky", "eigen"])
def test_kl_clip(float64, inverter):
    """nu = min(1, sqrt(kl_clip / (eta^2 sum <U, V>))) over all variables."""
    case = convolutional(3)
    case.options |= {"kl_clip": 1e-3, "inverter": inverter}
    errors = case.run()
    assert case.kfac.nu < 0.9
    assert max(errors) < 1e-9


def test_kl_clip_counts_the_fallback(float64):
    """What takes its plain gradient stands in the sum and is scaled too."""
    case = convolutional(3)
    head = layers.EinsumDense(
        "ab,bcd->acd", output_shape=(2, 3), bias_axes="c", activation="tanh"
    )
    case.layers[2:2] = [head, layers.Flatten()]
    case.options |= {"kl_clip": 1e-3, "weight_decay": 0.1}
    case.options |= {"fallback": "gradient"}
    errors = case.run()
    assert case.kfac.nu < 0.9
    assert max(errors) < 1e-9


def test_wide_kl_clip(float64):
    """nu is never above 1."""
    case = convolutional(2, options={"kl_clip": 1e3})
    errors = case.run()
    assert case.kfac.nu == 1
    assert max(errors) < 1e-9


@pytest.mark.parametrize("no_decay", [[], ["bias"]])
def test_weight_decay(float64, no_decay):
    """W <- (1 - eta wd) W + m; decay spares what Keras excludes."""
    case = convolutional(3, options={"weight_decay": 0.3}, no_decay=no_decay)
    case.options["kl_clip"] = 1e-3  # which scales U and not the decay
    case.mirror_options["decay_bias"] = not no_decay
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("limit", [0.05, 100.0])
def test_global_clipnorm(float64, limit):
    """Keras clips V, before the factors and the KL clip see it."""
    case = convolutional(3, options={"global_clipnorm": limit})
    case.options["kl_clip"] = 1e-3
    assert max(case.run()) < 1e-9


def test_regularizer(float64):
    """A regularizer enters V only."""
    case = convolutional(4, mirror_options={"ridge": 0.25})
    for layer in case.layers:
        if hasattr(layer, "kernel_regularizer"):
            layer.kernel_regularizer = keras.regularizers.L2(0.25)
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
def test_activity_regularizer(float64, fisher):
    """So does one of a layer's outputs, though it has a gradient there."""
    case = convolutional(4, output_ridge=0.25)
    case.layers[-1].activity_regularizer = keras.regularizers.L2(0.25)
    if fisher == "sampled":
        case.samples, case.likelihood = (
            np.array([0, 2, 1, 1]),
            tfkfac.Categorical,
        )
    assert max(case.run()) < 1e-9


def test_everything_at_once(float64):
    """All options together, in graph mode."""
    case = convolutional(10, run_eagerly=False)
    case.options |= {
        "factor_decay": 0.9,
        "factor_update_period": 2,
        "inverse_update_period": 3,
        "kl_clip": 1e-3,
        "weight_decay": 0.1,
        "global_clipnorm": 1.0,
    }
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_sampled_trajectory(float64, run_eagerly):
    """Ten updates of a convolutional network with the sampled Fisher."""
    samples = np.array([0, 2, 1, 1])
    case = convolutional(10, run_eagerly=run_eagerly)
    case.samples, case.likelihood = samples, tfkfac.Categorical
    case.options |= {"factor_update_period": 2, "inverse_update_period": 3}
    assert max(case.run()) < 1e-9


def test_sampled_float32():
    """float32 keeps 1e-5 for the sampled Fisher too."""
    case = convolutional(10, run_eagerly=False)
    case.x = case.x.astype("float32")
    case.samples, case.likelihood = np.array([0, 2, 1, 1]), tfkfac.Categorical
    case.options["damping"] = 0.5
    errors = case.run()
    assert case.condition() <= 100
    assert max(errors) < 1e-5
