"""Spectra of the Fisher, against explicit Jacobians and by hand."""

import keras
import numpy as np
import pytest
from jacobians import LOSSES, categorical, images, jacobian, vector
from keras import layers
from oracle import injected

import tfkfac
from tfkfac import analysis

RNG = np.random.default_rng(0)


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
