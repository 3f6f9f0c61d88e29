"""Curvature and noise along directions, against explicit Jacobians."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from jacobians import (
    LOSSES,
    categorical,
    images,
    jacobian,
    of_logits,
    vector,
)
from keras import layers
from oracle import relative_error

import tfkfac
from tfkfac import analysis


def probabilities():
    inputs = keras.Input((4, 4, 2))
    h = layers.Flatten()(inputs)
    h = layers.Dense(3, activation="tanh", name="hidden")(h)
    h = layers.LayerNormalization(name="norm")(h)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(h))


def of_probabilities(p):
    """1/p on the diagonal, less what normalizes: H at sum p = 1."""
    return np.einsum("nk,kl->nkl", 1 / p, np.eye(3)) - 1


def of_binary(y):
    p = 1 / (1 + np.exp(-y))
    return np.einsum("nk,kl->nkl", p * (1 - p), np.eye(3) / 3)


def of_squares(y):
    return np.tile(2 / 3 * np.eye(3), [len(y), 1, 1])


RNG = np.random.default_rng(0)

# Model, loss, its Hessian in the outputs, whether there are sample weights.
CASES = {
    "categorical": (images, categorical, of_logits, False),
    "weighted": (images, categorical, of_logits, True),
    "smoothed": (
        images,
        lambda: LOSSES.CategoricalCrossentropy(
            from_logits=True, label_smoothing=0.1
        ),
        of_logits,
        True,
    ),
    "probabilities": (
        probabilities,
        LOSSES.SparseCategoricalCrossentropy,
        of_probabilities,
        False,
    ),
    "binary": (
        images,
        lambda: LOSSES.BinaryCrossentropy(from_logits=True),
        of_binary,
        True,
    ),
    "squared": (images, LOSSES.MeanSquaredError, of_squares, False),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES)
def test_curvature_and_noise_are_those_of_jacobians(case):
    """Along each direction, over batches of two sizes."""
    build, make_loss, hessian, weighted = CASES[case]
    model, loss = build(), make_loss()
    x, y = RNG.normal(size=(11, 4, 4, 2)), RNG.integers(0, 3, 11)
    if "Sparse" not in type(loss).__name__:
        y = np.eye(3)[y]
    w = RNG.uniform(0.2, 2, 11) if weighted else np.ones(11)
    kfac = tfkfac.KFAC(0.01, norm_curvature="unitwise", model=model)
    model.compile(kfac, loss)
    for _ in range(3):
        model.train_on_batch(x, y)
    along = analysis.directions(model, 6)
    assert {v.layer for v in along} == set(analysis.eigenvalues(model))
    before = [v.numpy() for v in model.variables]
    data = (x, y, w) if weighted else (x, y)
    batches = [[d[:8] for d in data], [d[8:] for d in data]]
    measured = analysis.measure(model, along, map(tuple, batches))
    for v, value in zip(model.variables, before):
        np.testing.assert_array_equal(v.numpy(), value)

    J = jacobian(model, x)
    H = hessian(np.array(model(x, training=False)))
    F = np.einsum("n,nkp,nkl,nlq->pq", w, J, H, J, optimize=True) / 11
    losses = jacobian(
        model, x, lambda p: w * loss.call(tf.constant(y), p)
    )  # [11, P]
    V = np.stack([vector(model, m.direction) for m in measured])
    slopes = losses @ V.T
    found = [[m.curvature, m.variance, m.gradient] for m in measured]
    expected = [np.einsum("vp,pq,vq->v", V, F, V)]
    expected += [slopes.var(axis=0), slopes.mean(axis=0)]
    for own, other in zip(np.transpose(found), expected):
        assert relative_error(own, other) < 1e-9


@pytest.mark.usefixtures("float64")
def test_noise_of_sequences_with_masks():
    """By loss term: a batch of whole examples with n terms has c / n."""
    inputs = keras.Input((5,), dtype="int32")
    h = layers.Embedding(7, 3, mask_zero=True, name="embedding")(inputs)
    h = layers.Dense(4, activation="tanh", name="hidden")(h)
    model = keras.Model(inputs, layers.Dense(7, name="logits")(h))
    loss = categorical()
    model.compile(tfkfac.KFAC(0.01, model=model), loss)
    x = RNG.integers(1, 7, (6, 5))
    lengths = [5, 2, 4, 1, 5, 3]
    for row, length in zip(x, lengths):
        row[length:] = 0
    y = RNG.integers(0, 7, (6, 5))
    model.train_on_batch(x, y)
    along = analysis.directions(model, 4)
    assert {v.layer for v in along} == {"embedding", "hidden", "logits"}
    measured = analysis.measure(model, along, [(x, y)])

    keep, n = (x > 0).astype("float64"), np.array(lengths)
    J = jacobian(model, x)
    p = np.array(tf.nn.softmax(model(x)))
    H = np.einsum("btk,kl->btkl", p, np.eye(7)) - p[..., None] * p[..., None, :]
    Jg = jacobian(model, x, lambda s: tf.reduce_sum(keep * loss.call(y, s), 1))
    for m in measured:
        v = vector(model, m.direction)
        u = J @ v
        curvature = np.einsum("bt,btk,btkl,btl->", keep, u, H, u) / n.sum()
        s = Jg @ v
        rest = s - n * s.sum() / n.sum()
        assert m.curvature == pytest.approx(curvature, rel=1e-9)
        assert m.gradient == pytest.approx(s.sum() / n.sum(), rel=1e-9)
        assert m.variance == pytest.approx(rest @ rest / n.sum(), rel=1e-9)


@pytest.mark.usefixtures("float64")
def test_several_outputs():
    """Losses with weights: the curvature is that of their sum."""
    inputs = keras.Input((4,))
    h = layers.Dense(3, activation="tanh", name="hidden")(inputs)
    outputs = [layers.Dense(3, name="a")(h), layers.Dense(2, name="b")(h)]
    model = keras.Model(inputs, outputs)
    kfac = tfkfac.KFAC(0.01, model=model)
    loss = categorical()
    model.compile(kfac, [loss, "mse"], loss_weights=[0.5, 3.0])
    x, y = RNG.normal(size=(9, 4)), RNG.integers(0, 3, 9)
    t = RNG.normal(size=(9, 2))
    model.train_on_batch(x, [y, t])
    along = analysis.directions(model, 3)
    measured = analysis.measure(model, along, [(x, [y, t])])
    Ja = jacobian(model, x, lambda out: out[0])
    Jb = jacobian(model, x, lambda out: out[1])
    H = of_logits(model(x)[0])
    F = 0.5 * np.einsum("nkp,nkl,nlq->pq", Ja, H, Ja, optimize=True) / 9
    F += 3 * np.einsum("nkp,nkq->pq", Jb, Jb) / 9
    mse = LOSSES.MeanSquaredError()
    losses = jacobian(
        model,
        x,
        lambda o: 0.5 * loss.call(y, o[0]) + 3 * mse.call(t, o[1]),
    )
    for m in measured:
        v = vector(model, m.direction)
        assert m.curvature == pytest.approx(v @ F @ v, rel=1e-9)
        assert m.variance == pytest.approx((losses @ v).var(), rel=1e-9)
