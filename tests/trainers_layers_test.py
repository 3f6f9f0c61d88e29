"""Layers of the trainers' models; rescaled and regularized kernels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from trainers import layers
from trainers.layers import GhostBatchNormalization

RNG = np.random.default_rng(0)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


# Kernels.


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
    model.compile(optimizer, LOSS, run_eagerly=False)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_updates_are_equations_17_and_18(momentum):
    """w(t+1) = c (w(t) + m (w(t) - w(t-1)) - eta U), |w| = sqrt(2 d_out).

    eta U of one step is read off a copy of the model without momentum and
    without rescaling, with the same weights and curvature.
    """
    model, optimizer = build(momentum=momentum)
    layers.rescale(model, optimizer)
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
    layers.rescale(model, optimizer)
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
    layers.rescale(model, optimizer)
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
    layers.regularize(model, 0.25)
    compile_for(model, keras.optimizers.SGD(0.1))
    model.get_layer("dense").bias.assign([1.0, 2.0])
    before = [v.numpy() for v in model.trainable_variables]
    x, y = data()
    model.train_on_batch(x, y, sample_weight=np.zeros(len(x)))
    for v, w in zip(model.trainable_variables, before):
        factor = 1 - 0.1 * 0.25 if v.name == "kernel" else 1
        np.testing.assert_allclose(v, factor * w, rtol=1e-6)


# Ghost batch normalization.


@pytest.mark.parametrize(
    "shape, axis", [((12, 5), -1), ((12, 3, 2, 5), -1), ((12, 5, 3, 2), 1)]
)
def test_ghost_batches_are_batches(shape, axis, float64):
    x = RNG.normal(size=shape) * 3 + 1
    options = {
        "axis": axis,
        "beta_initializer": "random_normal",
        "gamma_initializer": "random_normal",
    }
    ghost = GhostBatchNormalization(virtual_batch_size=4, **options)
    ghost.build(shape)
    start = ghost.get_weights()
    outputs, moving = [], []
    for part in np.split(x, 3):
        layer = keras.layers.BatchNormalization(**options)
        layer.build(shape)
        layer.set_weights(start)
        outputs.append(layer(part, training=True))
        moving.append(layer.get_weights()[2:])
    np.testing.assert_allclose(
        ghost(x, training=True), np.concatenate(outputs), rtol=1e-9, atol=1e-9
    )
    for found, expected in zip(ghost.get_weights()[2:], zip(*moving)):
        np.testing.assert_allclose(found, np.mean(expected, 0), rtol=1e-9)
    layer.set_weights(ghost.get_weights())
    for options in ({"training": False}, {}):
        np.testing.assert_allclose(ghost(x, **options), layer(x, **options))
    ghost.trainable = False
    np.testing.assert_allclose(
        ghost(x, training=True), layer(x, training=False)
    )


def ghost_model(layer):
    return keras.Sequential(
        [
            keras.Input((2, 2, 3)),
            layer,
            keras.layers.Flatten(),
            keras.layers.Dense(4, name="logits"),
        ]
    )


@pytest.mark.parametrize("curvature", ["diagonal", "unitwise", "full"])
def test_ghost_curvature_is_the_mean_over_the_groups(curvature):
    """F = (1 / N) sum p p^T, with each group normalized by itself."""
    x, y = (
        RNG.normal(size=(8, 2, 2, 3)).astype("float32"),
        RNG.integers(0, 4, 8),
    )

    def factor(layer, x, y, weights=None):
        model = ghost_model(layer)
        if weights is not None:
            model.set_weights(weights)
        weights = model.get_weights()
        optimizer = tfkfac.KFAC(
            norm_curvature=curvature, fisher="empirical", model=model
        )
        model.compile(optimizer, LOSS, run_eagerly=True)
        model.train_on_batch(x, y)
        state = optimizer.curvature.state()
        F = state["norm/factor/moment"] / state["norm/factor/weight"]
        moved = model.get_weights()[3]  # The moving variance.
        return F, moved, weights

    ghost = GhostBatchNormalization(virtual_batch_size=4, name="norm")
    found, moved, weights = factor(ghost, x, y)
    parts = [
        factor(
            keras.layers.BatchNormalization(name="norm"), x[i], y[i], weights
        )
        for i in (slice(0, 4), slice(4, 8))
    ]
    assert np.abs(found).max() > 1e-3
    np.testing.assert_allclose(
        found, np.mean([F for F, *_ in parts], 0), rtol=1e-4, atol=1e-7
    )
    # The statistics move once a step, though the block normalizes again.
    np.testing.assert_allclose(
        moved, np.mean([m for _, m, _ in parts], 0), rtol=1e-5
    )


def test_ghost_in_a_graph_with_an_unknown_batch():
    layer = GhostBatchNormalization(virtual_batch_size=4)
    layer.build((None, 3))

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def call(x):
        return layer(x, training=True)

    x = RNG.normal(size=(8, 3)).astype("float32")
    np.testing.assert_allclose(call(x), layer(x, training=True), rtol=1e-4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="multiple of"):
        call(x[:6])


def test_errors_of_ghost_batches():
    layer = GhostBatchNormalization(virtual_batch_size=4, name="ghost")
    with pytest.raises(ValueError, match="ghost: .*4.* has 6 examples"):
        layer(np.zeros([6, 3]), training=True)
    layer(np.zeros([6, 3]), training=False)
    masked = keras.layers.Masking()(np.zeros([4, 2, 3]))
    with pytest.raises(ValueError, match="masked"):
        GhostBatchNormalization(virtual_batch_size=4)(masked, training=True)
    for option in ({"renorm": True}, {"synchronized": True}):
        with pytest.raises(ValueError, match=next(iter(option))):
            GhostBatchNormalization(**option)
    with pytest.raises(ValueError, match="virtual_batch_size=0"):
        GhostBatchNormalization(virtual_batch_size=0)
