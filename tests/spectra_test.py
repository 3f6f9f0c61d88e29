"""Spectra of the Fisher, against explicit Jacobians and by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from oracle import injected, relative_error

import tfkfac
from tfkfac import analysis
from tfkfac.analysis import noise, spectra

RNG = np.random.default_rng(0)
LOSSES = keras.losses


def categorical():
    """Made within a test, in the type of its numbers."""
    return LOSSES.SparseCategoricalCrossentropy(from_logits=True)


def jacobian(model, x, outputs=lambda y: y):
    """d outputs / d theta, [*outputs, P], theta in the model's order."""
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        y = outputs(model(x, training=False))
    parts = tape.jacobian(
        y,
        variables,
        unconnected_gradients="zero",
        experimental_use_pfor=False,
    )
    flat = [np.reshape(p, [*y.shape, -1]) for p in parts]
    return np.concatenate(flat, axis=-1)


def vector(model, direction):
    """A direction as a vector in the order of theta."""
    (block,) = [
        b for b in spectra.known_blocks(model) if b.path == direction.layer
    ]
    parts = noise.tangents(direction, block, model)
    return np.concatenate([np.ravel(p) for p in parts])


# Models that are linear in theta, several rows in an example: F = A (x) G.
LINEAR = {
    "dense": lambda: [layers.Dense(3)],
    "convolution": lambda: [layers.Conv1D(4, 3, padding="same", groups=2)],
    "depthwise": lambda: [layers.DepthwiseConv1D(2, 2, depth_multiplier=2)],
    "embedding": lambda: [layers.Embedding(6, 4)],
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", LINEAR)
def test_eigenvalues_are_those_of_the_fisher(kind):
    """Of squared errors, for targets with sum g g^T = R (2/K) I.

    Then A (x) G is F = (1/N) J^T J 2/K itself, with no further scale.
    """
    x = RNG.normal(size=(10, 6, 4))
    if kind == "embedding":
        x = RNG.integers(0, 6, size=(10, 6))
    model = keras.Sequential([*LINEAR[kind](), layers.Flatten()])
    y = np.array(model(x))
    channels = model.layers[0].output.shape[-1]
    rows = y.size // channels
    errors, _ = np.linalg.qr(RNG.normal(size=(rows, channels)))
    targets = y + (np.sqrt(rows) * errors).reshape(y.shape)
    likelihood = injected(tfkfac.Gaussian, targets)
    model.compile(tfkfac.KFAC(0.0, likelihood=likelihood, model=model), "mse")
    model.train_on_batch(x, y)

    J = jacobian(model, x)
    K = y.shape[1]
    F = np.einsum("nkp,nkq->pq", J, J) * 2 / K / len(x)
    found = analysis.eigenvalues(model)
    assert [*found] == [model.layers[0].name]
    (values,) = found.values()
    expected = np.linalg.eigvalsh(F)[::-1]
    np.testing.assert_allclose(values, expected, atol=1e-10 * expected[0])
    along = analysis.directions(model, 50)
    assert along[0].rank == 1
    measured = analysis.measure(model, along, [(x, targets)])
    for m in measured:
        v, place = vector(model, m.direction), m.direction.rank - 1
        assert v @ v == pytest.approx(1, rel=1e-12)
        assert m.direction.eigenvalue == pytest.approx(values[place], rel=1e-9)
        residual = np.linalg.norm(F @ v - m.direction.eigenvalue * v)
        assert residual < 1e-10 * expected[0]
        assert m.curvature == pytest.approx(m.direction.eigenvalue, rel=1e-9)


def images():
    """A convolution, a normalization and a dense layer; and dropout."""
    inputs = keras.Input((4, 4, 2))
    h = layers.Conv2D(3, 2, activation="tanh", name="conv")(inputs)
    h = layers.BatchNormalization(name="norm")(h)
    h = layers.Dropout(0.5)(layers.Flatten()(h))
    return keras.Model(inputs, layers.Dense(3, name="logits")(h))


def probabilities():
    inputs = keras.Input((4, 4, 2))
    h = layers.Flatten()(inputs)
    h = layers.Dense(3, activation="tanh", name="hidden")(h)
    h = layers.LayerNormalization(name="norm")(h)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(h))


def softmax_hessian(p):
    return np.einsum("nk,kl->nkl", p, np.eye(3)) - p[:, :, None] * p[:, None]


def of_logits(y):
    return softmax_hessian(np.array(tf.nn.softmax(y)))


def of_probabilities(p):
    """1/p on the diagonal, less what normalizes: H at sum p = 1."""
    return np.einsum("nk,kl->nkl", 1 / p, np.eye(3)) - 1


def of_binary(y):
    p = 1 / (1 + np.exp(-y))
    return np.einsum("nk,kl->nkl", p * (1 - p), np.eye(3) / 3)


def of_squares(y):
    return np.tile(2 / 3 * np.eye(3), [len(y), 1, 1])


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


def test_eigenvalues_are_those_of_saved_factors(tmp_path):
    """Of products and of normalization layers; the same after a restore."""
    keras.utils.set_random_seed(1)
    for curvature in ("diagonal", "unitwise", "full"):
        keras.utils.clear_session()
        model = images()
        kfac = tfkfac.KFAC(
            0.01,
            norm_curvature=curvature,
            max_factor_size=20,
            factor_decay=0.5,
            gradient_accumulation_steps=2,
            model=model,
        )
        model.compile(kfac, categorical())
        x = RNG.normal(size=(9, 4, 4, 2)).astype("float32")
        y = RNG.integers(0, 3, 9)
        for _ in range(5):  # Ends within an update.
            model.train_on_batch(x, y)
        found = analysis.eigenvalues(model)
        state = kfac.curvature.state()

        def factor(name, state=state):
            M = state[f"{name}/moment"] / state[f"{name}/weight"]
            if M.ndim == 2:
                return np.stack([np.diag(row) for row in M])
            return np.triu(M) + np.swapaxes(np.triu(M, 1), 1, 2)

        for path in ("conv", "logits"):
            A, G = (factor(f"{path}/{x}_factor") for x in ("input", "output"))
            expected = np.linalg.eigvalsh(np.kron(A[0], G[0]))[::-1]
            atol = 1e-6 * expected[0]
            np.testing.assert_allclose(found[path], expected, atol=atol)
        expected = np.sort(np.linalg.eigvalsh(factor("norm/factor")), None)
        atol = 1e-6 * expected[-1]
        np.testing.assert_allclose(found["norm"], expected[::-1], atol=atol)
        together = analysis.merged(found)
        assert len(together) == model.count_params() - 6
        assert np.all(np.diff(together) <= 0)
        path = tmp_path / f"{curvature}.keras"
        model.save(path)
        restored = keras.models.load_model(path)
        tfkfac.attach(restored)
        again = analysis.eigenvalues(restored)
        assert [*again] == [*found]
        for name, values in found.items():
            np.testing.assert_array_equal(again[name], values)


def test_power_law():
    i = np.arange(1, 3001)
    values = np.concatenate([5 * i**-0.7, np.zeros(1000)])
    assert analysis.power_law(values) == pytest.approx(0.7, rel=1e-12)
    values[500:] *= 0.1
    found = analysis.power_law(values, last=500)
    assert found == pytest.approx(0.7, rel=1e-12)
    assert np.isnan(analysis.power_law(np.array([2.0, 0.0])))


def test_percentiles_of_movements():
    """Over the layers, by the kind of the factor and the update."""
    rows = [
        {"update": 1, "a/input_factor": 0.0, "b/c/input_factor": 1.0},
        {
            "update": 4,
            "a/input_factor": 2.0,
            "b/c/input_factor": 2.0,
            "norm/factor": 3.0,
        },
    ]
    found = analysis.movement_percentiles(rows)
    assert [*found] == ["input_factor", "factor"]
    updates, values = found["input_factor"]
    np.testing.assert_array_equal(updates, [1, 4])
    np.testing.assert_allclose(values, [[0.05, 0.25, 0.5, 0.75, 0.95], [2] * 5])
    updates, values = found["factor"]
    np.testing.assert_array_equal(updates, [4])
    np.testing.assert_allclose(values, [[3] * 5])


def test_what_has_no_spectrum():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    with pytest.raises(TypeError, match="NoneType, not KFAC"):
        analysis.eigenvalues(model)
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match="SGD, not KFAC"):
        analysis.directions(model)
    model.compile(tfkfac.KFAC(model=model), LOSSES.CosineSimilarity())
    with pytest.raises(ValueError, match="train it first"):
        analysis.eigenvalues(model)
    x, y = np.ones([2, 3]), np.ones([2, 2])
    model.compile(tfkfac.KFAC(fisher="empirical", model=model), "hinge")
    model.train_on_batch(x, y)
    along = analysis.directions(model, 1)
    with pytest.raises(ValueError, match="no batch"):
        analysis.measure(model, along, [])
    with pytest.raises(ValueError, match="no likelihood is known"):
        analysis.measure(model, along, [(x, y)])

    class Own(tfkfac.Gaussian):
        curvature_along = tfkfac.Likelihood.curvature_along

    model.compile(tfkfac.KFAC(likelihood=Own(), model=model), "mse")
    model.train_on_batch(x, y)
    along = analysis.directions(model, 1)
    with pytest.raises(NotImplementedError, match="Own has no curvature_along"):
        analysis.measure(model, along, [(x, y)])
