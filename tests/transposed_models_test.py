"""Models with transposed convolutions: exactness, coverage, state, plan."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from identities_test import ExpectedGaussian, factors
from keras import layers

import tfkfac
from tfkfac.blocks import ConvolutionBlock

RNG = np.random.default_rng(0)


# Exactness.


def one_position(**arguments):
    """Of a 3 x 3 kernel, outputs of one pixel see the tap in the middle."""
    layer = layers.Conv2DTranspose(2, 3, name="layer", **arguments)
    inputs = keras.Input((1, 1, 3))
    x = layers.Flatten()(layer(inputs))
    model = keras.Model(inputs, x)
    assert x.shape == (None, 2)
    for v in model.trainable_variables:
        v.assign(RNG.normal(size=v.shape))
    return model


# Output padding makes it one pixel, where the stride is larger.
ONES = [
    {"padding": "same"},
    {"padding": "same", "strides": 2, "output_padding": 0},
]


def of_outputs(model, x):
    """Returns ds/dw for an example, w as V: taps, channels, outputs; bias."""
    layer = model.get_layer("layer")
    with tf.GradientTape() as tape:
        outputs = model(x)
    kernel, bias = tape.jacobian(outputs, [layer.kernel, layer.bias])
    kernel = np.reshape(np.swapaxes(kernel, -1, -2), [2, -1])
    return np.hstack([kernel, np.reshape(bias, [2, 2])])


@pytest.mark.parametrize("arguments", ONES)
def test_one_example_of_one_position_has_its_exact_fisher(float64, arguments):
    """A (x) G = J^T H J, for H = 2 / K I of the mean squared error.

    The example comes twice, for the two targets that stand for the likelihood.
    """
    model = one_position(**arguments)
    x = np.repeat(RNG.normal(size=(1, 1, 1, 3)), 2, axis=0)
    J = of_outputs(model, x[:1])
    optimizer = tfkfac.KFAC(0.0, likelihood=ExpectedGaussian(), model=model)
    model.compile(optimizer, "mse")
    model.train_on_batch(x, np.zeros([2, 2]))
    (A,), (G,) = factors(optimizer)
    np.testing.assert_allclose(np.kron(A, G), J.T @ J, atol=1e-12)
    assert np.linalg.matrix_rank(A) == 1


@pytest.mark.parametrize("arguments", ONES)
def test_one_example_of_one_position_has_its_empirical_fisher(
    float64, arguments
):
    """A (x) G = V V^T."""
    model = one_position(**arguments)
    x = RNG.normal(size=(1, 1, 1, 3))
    y = RNG.normal(size=(1, 2))
    V = of_outputs(model, x).T @ (np.asarray(model(x)) - y)[0]  # 2 / K is 1.
    optimizer = tfkfac.KFAC(0.0, fisher="empirical", model=model)
    model.compile(optimizer, "mse", run_eagerly=True)
    model.train_on_batch(x, y)
    (A,), (G,) = factors(optimizer)
    np.testing.assert_allclose(np.kron(A, G), np.outer(V, V), atol=1e-12)


# Models.


def autoencoder(image=(8, 8, 1)):
    return keras.Sequential(
        [
            keras.Input(image),
            layers.Conv2D(4, 3, 2, "same", activation="relu", name="down_1"),
            layers.Conv2D(6, 3, 2, "same", activation="relu", name="down_2"),
            layers.Conv2DTranspose(
                4, 3, 2, "same", activation="relu", name="up_1"
            ),
            layers.Conv2DTranspose(1, 4, 2, "same", name="up_2"),
        ],
        name="autoencoder",
    )


def u_net(image=(8, 8, 2)):
    def convolution(x, filters, name):
        x = layers.Conv2D(filters, 3, padding="same", name=name)(x)
        x = layers.BatchNormalization(name=f"{name}_norm")(x)
        return layers.Activation("relu")(x)

    inputs = keras.Input(image)
    first = convolution(inputs, 4, "first")
    second = convolution(layers.MaxPool2D()(first), 6, "second")
    x = convolution(layers.MaxPool2D()(second), 8, "bottom")
    for name, skip, filters in (("up_2", second, 6), ("up_1", first, 4)):
        x = layers.Conv2DTranspose(filters, 2, 2, "same", name=name)(x)
        x = layers.Concatenate()([x, skip])
        x = convolution(x, filters, f"{name}_joined")
    outputs = layers.Conv2D(3, 1, name="classes")(x)
    return keras.Model(inputs, outputs, name="u_net")


def images_of(model, batch=8):
    """Returns inputs and targets: themselves, or classes of pixels."""
    x = RNG.normal(size=(batch, *model.input_shape[1:])).astype("float32")
    if model.name == "autoencoder":
        return x, x, "mse"
    y = (x[..., 0] > 0).astype("int32") + (x[..., 1] > 0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return x, y, loss


def summary_of(optimizer):
    lines = []
    optimizer.summary(print_fn=lines.append)
    return lines[-1]


both = pytest.mark.parametrize(
    "build, blocks", [(autoencoder, 4), (u_net, 13)], ids=["autoencoder", "u"]
)


@both
def test_models_are_covered_and_train(build, blocks):
    model = build()
    optimizer = tfkfac.KFAC(0.1, damping=0.01, model=model)
    found = summary_of(optimizer)
    assert f"(100.0 %) in {blocks} blocks" in found
    assert "plain gradient" not in found
    assert "TransposedConvolutionBlock" in found
    x, y, loss = images_of(model)
    model.compile(optimizer, loss)
    losses = [float(model.train_on_batch(x, y)) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


def test_any_size_is_covered():
    model = u_net((None, None, 2))
    optimizer = tfkfac.KFAC(0.1, damping=0.01, model=model)
    found = summary_of(optimizer)
    assert "(100.0 %) in 13 blocks" in found
    (line,) = (x for x in found.splitlines() if x.startswith("up_1 "))
    assert "TransposedConvolutionBlock" in line and " patches " in line


def test_half_precision():
    """Factors as those of float32, but for rounding."""
    states = []
    for policy in ("float32", "mixed_float16"):
        keras.utils.clear_session(free_memory=False)
        keras.config.set_dtype_policy(policy)
        keras.utils.set_random_seed(0)
        model = autoencoder()
        x = np.random.default_rng(1).normal(size=(8, 8, 8, 1))
        optimizer = tfkfac.KFAC(0.1, damping=0.01, model=model)
        model.compile(
            keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1024.0)
            if policy == "mixed_float16"
            else optimizer,
            "mse",
        )
        for _ in range(2):
            assert np.isfinite(model.train_on_batch(x, x))
        assert int(optimizer.iterations) == 2
        states.append(optimizer.curvature.state())
    for key, value in states[0].items():
        if key.endswith("/moment"):
            scale = np.abs(value).max()
            error = np.abs(states[1][key] - value).max() / scale
            assert error < 2e-2, (key, error)


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_a_saved_model_goes_on_bit_for_bit(tmp_path, fisher):
    x = RNG.normal(size=(8, 8, 8, 1)).astype("float32")

    def train(model, steps):
        for _ in range(steps):
            model.train_on_batch(x, x)
        return [v.numpy() for v in model.trainable_variables]

    model = autoencoder()
    optimizer = tfkfac.KFAC(
        0.1, damping=0.01, inverse_update_period=2, fisher=fisher, model=model
    )
    model.compile(optimizer, "mse", run_eagerly=True)
    train(model, 3)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    again.run_eagerly = True
    tfkfac.attach(again)
    for expected, found in zip(train(model, 2), train(again, 2)):
        np.testing.assert_array_equal(found, expected)


# The plan.


@pytest.mark.parametrize("size, phases", [(4, 4), (2, 1)])
def test_flops_by_hand(monkeypatch, size, phases):
    """From 3 x 3 positions of 2 channels to 6 x 6 of 5.

    Each of the 4 phases has 3 x 3 positions, which see 2 x 2 taps of a 4 x 4
    kernel; of a 2 x 2 kernel they see one, and all the same inputs.
    """
    monkeypatch.setattr(ConvolutionBlock, "without_patches", False)
    inputs = keras.Input((3, 3, 2))
    x = layers.Conv2D(2, 1, name="below")(inputs)
    outputs = layers.Conv2DTranspose(5, size, 2, "same", name="up")(x)
    planned = tfkfac.plan(keras.Model(inputs, outputs), batch_size=8)
    (found,) = (x for x in planned.layers if x.path == "up")
    assert found.gradient_flops == 3 * 2 * 8 * 9 * size**2 * 2 * 5
    A = 2 * 8 * phases * 9 * (size**2 // 4 * 2) ** 2
    assert found.factor_flops == A + 2 * 8 * 36 * 5**2
