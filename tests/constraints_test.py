"""Rescaled and regularized kernels."""

import keras
import numpy as np
import pytest

import tfkfac
from trainers import constraints


def build(**kwargs):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(3, 3, name="convolution"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(2, name="dense"),
        ]
    )
    optimizer = tfkfac.KFAC(
        0.1, kl_clip=None, inverse_update_period=100, model=model, **kwargs
    )
    return model, optimizer


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 4, 4, 1)).astype("float32")
    return x, rng.integers(0, 2, 16)


def compile_for(model, optimizer):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, run_eagerly=False)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_updates_are_equations_17_and_18(momentum):
    """w(t+1) = c (w(t) + m (w(t) - w(t-1)) - eta U), |w| = sqrt(2 d_out).

    eta U of one step is read off a copy of the model without momentum and
    without rescaling, with the same weights and curvature.
    """
    model, optimizer = build(momentum=momentum)
    constraints.rescale(model, optimizer)
    compile_for(model, optimizer)
    plain, plain_optimizer = build(momentum=0.0)
    compile_for(plain, plain_optimizer)
    names = {"convolution": 3, "dense": 2}
    before = {}
    for t in range(4):
        start = model.get_weights()
        plain.set_weights(start)
        plain_optimizer.iterations.assign(t)
        model.train_on_batch(*data())
        plain.train_on_batch(*data())
        for name, d_out in names.items():
            w = model.get_layer(name).kernel.numpy()
            (w0,) = (
                s for s, v in zip(start, model.weights)
                if v is model.get_layer(name).kernel
            )  # fmt: skip
            moved = plain.get_layer(name).kernel.numpy()
            moved = moved + momentum * (w0 - before.get(name, w0))
            expected = np.sqrt(2 * d_out) * moved / np.linalg.norm(moved)
            np.testing.assert_allclose(w, expected, rtol=2e-4, atol=2e-5)
            before[name] = w0


def test_kernels_alone_are_rescaled():
    """A large kernel comes down to its norm; biases and scales are free."""
    model, optimizer = build()
    constraints.rescale(model, optimizer)
    compile_for(model, optimizer)
    dense = model.get_layer("dense")
    dense.kernel.assign(100 * dense.kernel)
    dense.bias.assign([7.0, 7.0])
    model.train_on_batch(*data())
    norm = np.linalg.norm(dense.kernel)
    assert norm == pytest.approx(np.sqrt(2 * 2), rel=1e-6)
    norm = np.linalg.norm(model.get_layer("convolution").kernel)
    assert norm == pytest.approx(np.sqrt(2 * 3), rel=1e-6)
    assert np.linalg.norm(dense.bias) > 5


def test_any_optimizer_rescales_and_the_constraint_is_saved(tmp_path):
    model, _ = build()
    optimizer = keras.optimizers.SGD(0.1)
    constraints.rescale(model, optimizer)
    compile_for(model, optimizer)
    model.train_on_batch(*data())
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    kernel = model.get_layer("convolution").kernel
    assert np.linalg.norm(kernel) == pytest.approx(np.sqrt(6), rel=1e-6)
    kernel.assign(3 * kernel)
    model.train_on_batch(*data())
    assert np.linalg.norm(kernel) == pytest.approx(np.sqrt(6), rel=1e-6)


def test_regularizer_decays_kernels_by_the_rate():
    """A step of SGD on the penalty alone is (1 - eta wd) w."""
    model, _ = build()
    constraints.regularize(model, 0.25)
    compile_for(model, keras.optimizers.SGD(0.1))
    model.get_layer("dense").bias.assign([1.0, 2.0])
    before = [v.numpy() for v in model.trainable_variables]
    x, y = data()
    model.train_on_batch(x, y, sample_weight=np.zeros(len(x)))
    for v, w in zip(model.trainable_variables, before):
        factor = 1 - 0.1 * 0.25 if v.name == "kernel" else 1
        np.testing.assert_allclose(v, factor * w, rtol=1e-6)
