"""The units of inputs, and damping by them (`damping="auto"`)."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from tfkfac import input_units


def averages(x, mask=None, dtype=tf.float64):
    P = input_units.powers(tf.constant(x), mask, dtype)
    return P / len(x)


def test_the_powers_are_sums_over_the_rows_that_count():
    x = np.random.default_rng(0).normal(size=(7, 3))
    mask = np.array([1, 1, 0, 1, 0, 1, 1])
    x[2] = np.nan  # It does not count.
    found = input_units.powers(
        tf.constant(x), tf.constant(mask[:, None]), tf.float64
    )
    rows = x[mask == 1]
    expected = [5, *(np.sum(rows**k, axis=0) for k in (1, 2, 3, 4))]
    np.testing.assert_allclose(found[0], np.hstack(expected), rtol=1e-12)


def test_the_unit_is_the_deviation_of_a_normal_distribution():
    x = np.random.default_rng(0).normal(size=(200_000, 1))
    unit = input_units.squared_units(averages(5 + 3 * x), 1)
    assert float(unit[0, 0]) == pytest.approx(9, rel=0.02)


def test_the_unit_of_a_rare_input_does_not_fall_with_its_variance():
    for count in (10, 100, 1000):
        x = np.zeros((count, 2))
        x[0, 0], x[: count // 2, 1] = 4.0, 4.0
        rare, usual = input_units.squared_units(averages(x), 2)[0]
        p = 1 / count
        assert float(rare) == pytest.approx(16 / 3 * (1 - 3 * p + 3 * p * p))
        assert float(usual) == pytest.approx(16 / 3 / 4)


@pytest.mark.parametrize(
    "dtype, tolerance", [(tf.float64, 1e-9), (tf.float32, 1e-3)]
)
def test_other_units_and_zeros_of_inputs_change_the_unit_alone(
    dtype, tolerance
):
    x = np.random.default_rng(0).gamma(2.0, size=(500, 4))
    scale, zero = np.array([1e-3, 1.0, 50.0, 1e4]), np.array([3, -3, 0, 5])
    plain = input_units.squared_units(averages(x, dtype=dtype), 4)
    other = averages((x + zero) * scale, dtype=dtype)
    np.testing.assert_allclose(
        input_units.squared_units(other, 4), plain * scale**2, rtol=tolerance
    )


def test_inputs_that_do_not_change_have_a_unit():
    x = np.random.default_rng(0).normal(size=(50, 4))
    x[:, 1], x[:, 2] = 0.0, -7.0
    units = input_units.squared_units(averages(x), 4)[0].numpy()
    assert units[2] == pytest.approx(49)
    assert units[1] == pytest.approx(np.mean(np.delete(units, 1)) * 3 / 4)
    np.testing.assert_array_equal(
        input_units.squared_units(averages(np.zeros((5, 2))), 4),
        np.ones((1, 4)),
    )


def test_of_a_patch_each_channel_has_its_unit_at_each_place():
    x = np.random.default_rng(0).normal(size=(50, 2)) * [1, 10]
    of_channels = input_units.squared_units(averages(x), 2)
    of_patch = input_units.squared_units(averages(x), 6)
    np.testing.assert_array_equal(of_patch, np.tile(of_channels, 3))


# Through the optimizer.


def dense(x):
    return keras.layers.Dense(4, activation="tanh", name="first")(x)


def convolution(x):
    x = keras.layers.Conv1D(3, 3, activation="tanh", name="first")(x)
    return keras.layers.Flatten()(x)


def einsum(x):
    layer = keras.layers.EinsumDense(
        "btc,cd->btd", (6, 3), bias_axes="d", name="first"
    )
    return keras.layers.Flatten()(layer(x))


LAYERS = {"dense": ((5,), dense), "convolution": ((8, 5), convolution),
          "einsum": ((6, 5), einsum)}  # fmt: skip


def compiled(kind, dtype="float64", eager=False, **options):
    keras.config.set_floatx(dtype)  # Until the end of the test.
    keras.utils.set_random_seed(0)
    shape, layer = LAYERS[kind]
    inputs = keras.Input(shape)
    model = keras.Model(inputs, keras.layers.Dense(2)(layer(inputs)))
    settings = {"momentum": 0.5, "kl_clip": None} | options
    optimizer = tfkfac.KFAC(0.05, model=model, **settings)
    model.compile(optimizer, "mse", run_eagerly=eager)
    return model


def data(kind, count=16):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, *LAYERS[kind][0]))
    return x, rng.normal(size=(count, 2))


def in_other_units(model, scale, zero):
    """Has a model give for (x + zero) scale what it gave for x."""
    layer = model.get_layer("first")
    kernel, bias = layer.get_weights()
    taps = kernel.reshape(-1, len(scale), kernel.shape[-1])
    bias -= np.einsum("tcd,c->d", taps, zero)
    layer.set_weights([kernel / scale[:, None], bias])


def after(model, x, y, steps=6):
    for _ in range(steps):
        model.train_on_batch(x, y)
    return model.predict(x, verbose=0)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "dtype, tolerance", [("float64", 1e-8), ("float32", 1e-2)]
)
def test_steps_are_the_same_functions_in_other_units(kind, dtype, tolerance):
    x, y = data(kind)
    scale, zero = np.array([0.01, 0.1, 1, 30, 100]), np.array([2, -2, 3, 0, 1])
    plain, other = compiled(kind, dtype), compiled(kind, dtype)
    start = plain.predict(x, verbose=0)
    in_other_units(other, scale, zero)
    expected = after(plain, x, y)
    found = after(other, (x + zero) * scale, y)
    assert np.max(np.abs(expected - start)) > 0.3  # It has learnt.
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_a_number_depends_on_the_units():
    x, y = data("dense")
    plain, other = (compiled("dense", damping=1e-3) for _ in range(2))
    in_other_units(other, np.full(5, 30.0), np.zeros(5))
    change = after(plain, x, y) - after(other, 30 * x, y)
    assert np.max(np.abs(change)) > 1e-3


@pytest.mark.parametrize("eager", [False, True])
def test_the_first_update_is_that_of_the_equations(eager):
    x, y = data("dense", 12)
    model = compiled("dense", eager=eager, fisher="empirical", momentum=0.0)
    kernel, bias, *_ = (w.astype("float64") for w in model.get_weights())
    with tf.GradientTape() as tape:
        s = tf.constant(x @ kernel + bias)
        tape.watch(s)
        last = model.layers[-1]
        out = tf.tanh(s) @ last.kernel.value + last.bias.value
        losses = tf.reduce_mean(tf.square(out - y), axis=1)
    g = tape.gradient(losses, s).numpy()
    a = np.hstack([x, np.ones((12, 1))])
    A, G, V = a.T @ a / 12, g.T @ g / 12, a.T @ g / 12
    centred = x - x.mean(0)
    units = np.mean(centred**4, 0) / np.mean(centred**2, 0) / 3
    ratio = np.trace(G) / 4
    mean = A[:, -1:]
    shift = np.diag([*units, 0.0]) + mean @ mean.T
    damped_A = A + np.sqrt(3e-3 / ratio) * shift
    damped_G = G + np.sqrt(3e-3 * ratio) * np.eye(4)
    U = np.linalg.solve(damped_A, V) @ np.linalg.inv(damped_G)
    model.train_on_batch(x, y)
    new = np.vstack([*map(np.atleast_2d, model.get_weights()[:2])])
    old = np.vstack([kernel, bias[None]])
    np.testing.assert_allclose(new, old - 0.05 * U, rtol=1e-7, atol=1e-9)


def test_masked_rows_do_not_count():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 6, 3)).astype("float32")
    hidden = x.copy()
    hidden[:, 4:] = 0.0
    found = []
    for length, inputs in ((4, x[:, :4]), (6, hidden)):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((length, 3)),
                keras.layers.Masking(),
                keras.layers.Dense(4),
                keras.layers.GlobalAveragePooling1D(),
                keras.layers.Dense(1),
            ]
        )
        model.compile(tfkfac.KFAC(0.1, model=model, fisher="empirical"), "mse")
        for _ in range(3):
            model.train_on_batch(inputs, np.ones((8, 1)))
        found.append(model.get_weights())
    for a, b in zip(*found):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_layers_without_a_bias_and_long_sides_are_damped_as_by_a_number():
    x, y = data("dense")

    def trained(damping):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((5,)),
                keras.layers.Dense(4, use_bias=False),
                keras.layers.Dense(2, use_bias=False),
            ]
        )
        optimizer = tfkfac.KFAC(0.1, damping=damping, model=model)
        model.compile(optimizer, "mse")
        return after(model, x, y)

    np.testing.assert_array_equal(trained("auto"), trained(3e-3))
    model = compiled("dense", max_factor_size=5)
    layers = model.optimizer.require_attached().layers
    names = [[f.name for f in b.factors] for b in layers.registration.blocks]
    assert names == [
        ["input_factor", "output_factor"],
        ["input_factor", "output_factor", "input_powers"],
    ]
