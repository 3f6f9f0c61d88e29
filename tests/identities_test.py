"""Exact identities: least squares, the exact Fisher, invariances."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac

RNG = np.random.default_rng(0)


def single_layer(d_in, d_out, activation=None):
    return keras.Sequential(
        [
            keras.Input((d_in,)),
            keras.layers.Dense(d_out, activation=activation, name="layer"),
        ]
    )


def factors(optimizer, path="layer"):
    """Returns (A, G) of a block, each [groups, dim, dim]."""
    state = optimizer.curvature.state()
    return tuple(
        state[f"{path}/{name}/moment"] / state[f"{path}/{name}/weight"]
        for name in ("input_factor", "output_factor")
    )


class ExpectedGaussian(tfkfac.Gaussian):
    """Targets at distance one along each axis in turn, so that G = c I / K.

    With targets y + sqrt(K) e_k for the terms in turn, the mean of g g^T over
    the batch is its expectation under the model.
    """

    def sample(self, outputs, uniforms):
        terms, K = outputs.shape
        axes = tf.one_hot(tf.range(terms) % K, K, dtype=outputs.dtype)
        return outputs + K**0.5 * axes


def test_one_step_solves_least_squares(float64):
    """Damping to 0, learning rate 1, the expected G: Newton's method."""
    B, d_in, d_out = 60, 5, 3
    x, y = RNG.normal(size=(B, d_in)), RNG.normal(size=(B, d_out))
    model = single_layer(d_in, d_out)
    optimizer = tfkfac.KFAC(
        1.0,
        damping=1e-24,
        momentum=0.0,
        kl_clip=None,
        likelihood=ExpectedGaussian(),
        model=model,
    )
    model.compile(optimizer, "mse")
    model.train_on_batch(x, y)
    a = np.concatenate([x, np.ones([B, 1])], axis=1)
    solution, *_ = np.linalg.lstsq(a, y, rcond=None)
    found = np.concatenate([w.reshape(-1, d_out) for w in model.get_weights()])
    np.testing.assert_allclose(found, solution, rtol=1e-8)


def exact_fisher(x, model, loss):
    """Returns E[dl/dw dl/dw^T] over inputs and the model's own targets.

    w is the kernel, row-major, and then the bias; [d, d] with the d_out
    outputs as the fast axis.
    """
    a = np.concatenate([x, np.ones([len(x), 1])], axis=1)
    outputs = np.asarray(model(x), "float64")
    K = outputs.shape[1]
    total = np.zeros([a.shape[1] * K] * 2)
    for row, output in zip(a, outputs):
        if loss == "mse":
            H = 2 / K * np.eye(K)
        else:
            p = np.exp(output - output.max())
            p /= p.sum()
            H = np.diag(p) - np.outer(p, p)
        total += np.kron(np.outer(row, row), H)
    return total / len(x)


@pytest.mark.parametrize("loss", ["mse", "softmax"])
def test_sampled_block_approaches_the_exact_fisher(loss, float64):
    """The error of A (x) G falls as 1 / sqrt(samples).

    For a linear layer with squared error the block is the exact Fisher; for a
    softmax layer it is where G does not vary with the input, so that all
    inputs there have one prediction (a kernel of zeros, any bias).
    """
    B, d_in, d_out, rounds = 40, 4, 3, 1024
    x = RNG.normal(size=(B, d_in))
    model = single_layer(d_in, d_out)
    if loss == "softmax":
        model.set_weights([np.zeros([d_in, d_out]), np.array([0.5, 0, -1])])
        y = RNG.integers(0, d_out, B)
        compiled = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        y, compiled = RNG.normal(size=(B, d_out)), "mse"
    exact = exact_fisher(x, model, loss)
    # Weights stay: the learning rate is 0. Each factor is of one batch.
    optimizer = tfkfac.KFAC(
        0.0, damping=1.0, factor_decay=0, factor_update_period=1, model=model
    )
    model.compile(optimizer, compiled)
    blocks = []
    for _ in range(rounds):
        model.train_on_batch(x, y)
        (A,), (G,) = factors(optimizer)
        blocks.append(np.kron(A, G))
    sizes = [1, 4, 16, 64]
    errors = []
    for size in sizes:
        means = np.reshape(blocks, [rounds // size, size, *exact.shape]).mean(1)
        squares = np.sum((means - exact) ** 2, axis=(1, 2))
        errors.append(np.sqrt(squares.mean()) / np.linalg.norm(exact))
        print(f"{loss}: {B * size:6,} samples, relative error {errors[-1]:.4f}")
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    print(f"{loss}: error ~ samples^{slope:.2f}")
    assert abs(slope + 0.5) < 0.1
    total = np.linalg.norm(np.mean(blocks, 0) - exact) / np.linalg.norm(exact)
    assert total < 0.03


def test_one_by_one_convolution_is_dense():
    x = RNG.normal(size=(16, 1, 1, 6)).astype("float32")
    y = RNG.integers(0, 4, 16)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    weights = RNG.normal(size=(6, 4)), RNG.normal(size=4)
    results = []
    for layer in (
        keras.layers.Conv2D(4, 1, name="layer"),
        keras.layers.Dense(4, name="layer"),
    ):
        model = keras.Sequential(
            [keras.Input((1, 1, 6)), layer, keras.layers.Flatten()]
        )
        layer.kernel.assign(weights[0].reshape(layer.kernel.shape))
        layer.bias.assign(weights[1])
        optimizer = tfkfac.KFAC(0.1, damping=0.1, model=model)
        model.compile(optimizer, loss)
        for _ in range(5):
            model.train_on_batch(x, y)
        results.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


def two_layers():
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            keras.layers.Conv2D(3, 2, activation="tanh", name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(4, name="logits"),
        ]
    )
    for v in model.trainable_variables:
        v.assign(np.random.default_rng(1).normal(size=v.shape) / 3)
    return model


class GivenTargets(tfkfac.Categorical):
    """Takes fixed classes for the sampled ones."""

    targets = None

    def sample(self, outputs, uniforms):
        return tf.constant(self.targets, tf.int32)


def after_two_steps(x, y, targets, reduction="sum_over_batch_size", scale=1.0):
    model = two_layers()
    likelihood = GivenTargets()
    likelihood.targets = targets
    optimizer = tfkfac.KFAC(
        0.1 * scale, damping=0.1, likelihood=likelihood, model=model
    )
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=reduction
    )
    model.compile(optimizer, loss)
    for _ in range(2):
        model.train_on_batch(x, y)
    return np.concatenate([w.ravel() for w in model.get_weights()]), [
        *factors(optimizer, "conv"),
        *factors(optimizer, "logits"),
    ]


@pytest.mark.parametrize("change", ["duplicated batch", "sum"])
def test_invariances(change):
    """Neither factors nor weights depend on batch size or loss reduction."""
    x = RNG.normal(size=(12, 5, 5, 2)).astype("float32")
    y, targets = RNG.integers(0, 4, 12), RNG.integers(0, 4, 12)
    weights, matrices = after_two_steps(x, y, targets)
    if change == "sum":
        other = after_two_steps(x, y, targets, "sum", 1 / 12)
    else:
        other = after_two_steps(
            np.tile(x, (3, 1, 1, 1)), np.tile(y, 3), np.tile(targets, 3)
        )
    np.testing.assert_allclose(weights, other[0], rtol=1e-5, atol=1e-6)
    for a, b in zip(matrices, other[1]):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert np.abs(matrices[1]).max() > 1e-3
