"""Updates for each loss and Fisher, against K-FAC in float64 NumPy."""

import keras
import numpy as np
import pytest
from keras import layers
from oracle import ONE_UPDATE, Case, cross_entropy

import tfkfac

REDUCTIONS = ["sum", "sum_over_batch_size", "mean", "mean_with_sample_weight"]
RNG = np.random.default_rng(3)
CLASSES = RNG.integers(0, 3, size=12)
NUMBERS_3 = RNG.normal(size=(12, 3))
SHARES = RNG.dirichlet(np.ones(3), size=12)
BITS = RNG.integers(0, 2, size=(12, 3))
WEIGHTS = np.array([0.5, 1, 2, 0, 1, 3] * 2, "float64")


def dense(loss, y, outputs=3, shape=(5,), activation=None, **arguments):
    """A case of two updates of a small dense network."""
    rng = np.random.default_rng(0)
    return Case(
        [
            layers.Dense(4, activation="tanh"),
            layers.Dense(outputs, activation=activation),
        ],
        x=rng.normal(size=(len(y), *shape)),
        y=y,
        batch=len(y) // 2,
        loss=loss,
        options=ONE_UPDATE,
        **arguments,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
def test_reductions(float64, reduction, fisher):
    """A reduction changes V, not the factors."""
    case = dense(cross_entropy(reduction=reduction), CLASSES, weights=WEIGHTS)
    if fisher == "sampled":
        case.samples, case.likelihood = CLASSES[::2], tfkfac.Categorical
    assert max(case.run()) < 1e-9


# Loss, targets, outputs, last activation.
LOSSES = {
    "classes": ("SparseCategoricalCrossentropy", CLASSES, {}, "logits"),
    "class probabilities": (
        "SparseCategoricalCrossentropy",
        CLASSES,
        {},
        "softmax",
    ),
    "shares": ("CategoricalCrossentropy", SHARES, {}, "logits"),
    "smoothed": (
        "CategoricalCrossentropy",
        np.eye(3)[CLASSES],
        {"label_smoothing": 0.2},
        "logits",
    ),
    "smoothed probabilities": (
        "CategoricalCrossentropy",
        np.eye(3)[CLASSES],
        {"label_smoothing": 0.2},
        "softmax",
    ),
    "bits": ("BinaryCrossentropy", BITS, {}, "logits"),
    "bit probabilities": ("BinaryCrossentropy", BITS, {}, "sigmoid"),
    "one bit": ("BinaryCrossentropy", BITS[:, :1], {}, "logits"),
    "smoothed bits": (
        "BinaryCrossentropy",
        BITS,
        {"label_smoothing": 0.2},
        "logits",
    ),
    "numbers": ("MeanSquaredError", NUMBERS_3, None, None),
    "one number": ("MeanSquaredError", NUMBERS_3[:, :1], None, None),
}


def make_loss(name, arguments, last):
    """Returns a Keras loss and the activation below it."""
    if arguments is None:
        return getattr(keras.losses, name)(), None
    loss = getattr(keras.losses, name)(
        from_logits=last == "logits", **arguments
    )
    return loss, None if last == "logits" else last


@pytest.mark.parametrize(
    "name, y, arguments, last", LOSSES.values(), ids=LOSSES.keys()
)
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_empirical(float64, name, y, arguments, last, weights):
    """g = d(sum_n w_n l_n)/ds of the compiled loss."""
    loss, activation = make_loss(name, arguments, last)
    outputs = 3 if y.ndim == 1 else y.shape[-1]
    case = dense(loss, y, outputs, activation=activation, weights=weights)
    assert max(case.run()) < 1e-9


# Likelihood, samples, loss, targets, outputs, last activation.
LIKELIHOODS = {
    "Categorical": (
        tfkfac.Categorical,
        CLASSES[3:9],
        "SparseCategoricalCrossentropy",
        CLASSES,
        "logits",
    ),
    "Categorical, probabilities": (
        tfkfac.Categorical,
        CLASSES[3:9],
        "CategoricalCrossentropy",
        SHARES,
        "softmax",
    ),
    "Bernoulli": (
        tfkfac.Bernoulli,
        BITS[3:9],
        "BinaryCrossentropy",
        BITS,
        "logits",
    ),
    "Bernoulli, probabilities": (
        tfkfac.Bernoulli,
        BITS[3:9],
        "BinaryCrossentropy",
        BITS,
        "sigmoid",
    ),
    "Gaussian": (
        tfkfac.Gaussian,
        NUMBERS_3[3:9],
        "MeanSquaredError",
        NUMBERS_3,
        None,
    ),
}


@pytest.mark.parametrize(
    "kind, samples, name, y, last", LIKELIHOODS.values(), ids=LIKELIHOODS
)
@pytest.mark.parametrize(
    "weights, loss_weight",
    [(None, 1.0), (WEIGHTS, 1.0), (WEIGHTS, 2.5)],
    ids=["plain", "weighted", "loss weight"],
)
def test_sampled(float64, kind, samples, name, y, last, weights, loss_weight):
    """g = d(sum_n sqrt(c w_n) NLL_n)/ds for sampled targets."""
    arguments = None if last is None else {}
    loss, activation = make_loss(name, arguments, last)
    case = dense(
        loss,
        y,
        activation=activation,
        weights=weights,
        samples=samples,
        likelihood=kind,
        loss_weight=loss_weight,
    )
    if activation:
        case.likelihood_options = {"from_logits": False}
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_loss_weight(float64, reduction):
    """A loss weight scales the empirical gradients as a weight does.

    It is none of the weights that "mean_with_sample_weight" divides by.
    """
    loss = cross_entropy(reduction=reduction)
    case = dense(loss, CLASSES, weights=WEIGHTS, loss_weight=0.5)
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize("kind", ["Categorical", "Bernoulli", "Gaussian"])
def test_sampled_at_positions(float64, kind):
    """Each entry of the unreduced loss is a term, with its own target."""
    rng = np.random.default_rng(0)
    y, samples = {
        "Categorical": (rng.integers(0, 3, (8, 2)), rng.integers(0, 3, 8)),
        "Bernoulli": (rng.integers(0, 2, (8, 2, 3)), BITS[:8]),
        "Gaussian": (rng.normal(size=(8, 2, 3)), NUMBERS_3[:8]),
    }[kind]
    loss = {
        "Categorical": cross_entropy,
        "Bernoulli": lambda: keras.losses.BinaryCrossentropy(from_logits=True),
        "Gaussian": keras.losses.MeanSquaredError,
    }[kind]()
    case = dense(
        loss,
        y,
        shape=(2, 5),
        weights=rng.uniform(0, 2, size=(8, 2)),
        samples=samples,
        likelihood=getattr(tfkfac, kind),
    )
    assert max(case.run()) < 1e-9


def test_sampled_with_a_mask(float64):
    """Masked terms have no gradient and count nowhere."""
    y = np.tile(np.array([[0, 1, 2]]), (4, 1))
    case = dense(cross_entropy(), y, shape=(3, 5))
    case.layers.insert(0, layers.Masking())
    case.x[[0, 1, 3], [2, 1, 0]] = 0
    case.samples, case.likelihood = CLASSES[:6], tfkfac.Categorical
    assert max(case.run()) < 1e-9
