"""Normalization layers, against K-FAC in float64 NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from oracle import (
    ONE_UPDATE,
    Case,
    cross_entropy,
    injected,
    relative_error,
    single,
)

import tfkfac
from tfkfac.blocks import normalization

inverters = pytest.mark.parametrize("inverter", ["cholesky", "eigen"])
curvatures = pytest.mark.parametrize(
    "curvature", ["diagonal", "unitwise", "full"]
)
# Shape of the inputs, and the layer.
NORMS = {
    "batch": ((4,), layers.BatchNormalization, {}),
    "batch of images": ((3, 2, 4), layers.BatchNormalization, {}),
    "batch without scale": (
        (3, 4),
        layers.BatchNormalization,
        {"scale": False},
    ),
    "batch without shift": (
        (3, 4),
        layers.BatchNormalization,
        {"center": False, "epsilon": 0.1},
    ),
    "batch, axis 1": ((2, 3, 4), layers.BatchNormalization, {"axis": 1}),
    "layer": ((4,), layers.LayerNormalization, {}),
    "layer of sequences": ((3, 4), layers.LayerNormalization, {}),
    "layer of images": (
        (3, 2, 4),
        layers.LayerNormalization,
        {"epsilon": 0.1},
    ),
    "layer, two axes": (
        (3, 2, 4),
        layers.LayerNormalization,
        {"axis": [2, 3]},
    ),
    "layer, all axes": (
        (3, 2, 4),
        layers.LayerNormalization,
        {"axis": [1, 2, 3]},
    ),
    "layer, axes apart": (
        (3, 2, 4),
        layers.LayerNormalization,
        {"axis": [3, 1]},
    ),
    "layer without scale": (
        (3, 4),
        layers.LayerNormalization,
        {"scale": False},
    ),
    "layer without shift": (
        (3, 4),
        layers.LayerNormalization,
        {"center": False},
    ),
    "root mean square": (
        (3, 4),
        layers.LayerNormalization,
        {"rms_scaling": True},
    ),
    "group": ((4,), layers.GroupNormalization, {"groups": 2}),
    "group of images": (
        (3, 2, 6),
        layers.GroupNormalization,
        {"groups": 3, "epsilon": 0.1},
    ),
    "group of one channel": (
        (3, 4),
        layers.GroupNormalization,
        {"groups": -1},
    ),
    "group of all channels": (
        (3, 4),
        layers.GroupNormalization,
        {"groups": 1},
    ),
    "group without scale": (
        (3, 4),
        layers.GroupNormalization,
        {"groups": 2, "scale": False},
    ),
    "group without shift": (
        (3, 4),
        layers.GroupNormalization,
        {"groups": 2, "center": False},
    ),
}


def normalized(kind="batch of images", curvature="diagonal", **arguments):
    """A case of a norm layer between two layers with weights."""
    shape, norm, settings = NORMS[kind]
    below = layers.Dense(shape[-1])
    case = single(below, (*shape[:-1], 3), batch=arguments.pop("count", 6))
    case.layers[1:1] = [norm(**settings), layers.Activation("tanh")]
    case.options = ONE_UPDATE | arguments.pop("options", {})
    case.keras_options = {"norm_curvature": curvature}
    for name, value in arguments.items():
        setattr(case, name, value)
    return case


@pytest.mark.filterwarnings("ignore:.*rms_scaling=True.*")
@pytest.mark.parametrize("kind", NORMS)
def test_norms(float64, kind):
    """F = (1/N) sum_i p_i p_i^T, and what goes through the statistics."""
    assert max(normalized(kind, "full").run()) < 1e-9


@pytest.mark.parametrize("curvature", ["diagonal", "unitwise"])
@pytest.mark.parametrize(
    "kind",
    ["batch of images", "layer, axes apart", "layer without scale", "group"],
)
def test_kept_parts(float64, kind, curvature):
    """The diagonal, or a 2 x 2 block for each channel."""
    assert max(normalized(kind, curvature).run()) < 1e-9


FEW = ["batch", "batch of images", "layer of sequences", "group of images"]
few = pytest.mark.parametrize("kind", FEW)


@inverters
@curvatures
@pytest.mark.parametrize("norm_damping", [None, 1e-3])
def test_damping(float64, curvature, norm_damping, inverter):
    """(F + lambda I)^-1 under every inverter, lambda not split."""
    options = {"inverter": inverter, "norm_damping": norm_damping}
    case = normalized(curvature=curvature, options=options)
    assert max(case.run()) < 1e-9


@pytest.mark.parametrize(
    "kind, curvature, inverter",
    [
        ("batch of images", "unitwise", "cholesky"),
        ("batch of images", "full", "eigen"),
        ("layer of sequences", "diagonal", "cholesky"),
        ("group of images", "unitwise", "eigen"),
    ],
)
def test_several_updates(float64, kind, curvature, inverter):
    """Three updates with running averages and momentum, in graph mode."""
    options = {"momentum": 0.9, "inverter": inverter}
    case = normalized(
        kind, curvature, count=12, batch=4, options=options, run_eagerly=False
    )
    assert max(case.run()) < 1e-9


@inverters
@pytest.mark.parametrize("name", ["damping", "norm_damping"])
def test_schedules(float64, inverter, name):
    """Damping is frozen at the refresh for cholesky, and only there."""
    options = {"inverter": inverter, "inverse_update_period": 2}
    case = normalized(curvature="full", count=16, batch=4, options=options)
    case.options.pop(name, None)
    case.mirror_options[name] = lambda t: 0.5 / (1 + t)
    case.keras_options[name] = lambda t: 0.5 / (1 + ops.cast(t, "float64"))
    assert max(case.run()) < 1e-9


@few
def test_sampled(float64, kind):
    """The sampled Fisher, with given targets."""
    samples = np.array([2, 0, 1, 2, 1, 0])
    likelihood = tfkfac.Categorical
    case = normalized(kind, "full", samples=samples, likelihood=likelihood)
    assert max(case.run()) < 1e-9


def test_labels_of_tokens(float64):
    """N counts terms, while p sums over the positions of an example."""
    rng = np.random.default_rng(0)
    stack = [layers.Dense(4), layers.LayerNormalization(), layers.Dense(3)]
    case = Case(
        stack,
        x=rng.normal(size=(4, 3, 5)),
        y=rng.integers(0, 3, size=(4, 3)),
        weights=rng.uniform(0.5, 2, size=(4, 3)),
        loss=cross_entropy(),
        options=ONE_UPDATE,
        keras_options={"norm_curvature": "full"},
    )
    assert max(case.run()) < 1e-9


@pytest.mark.filterwarnings("ignore:.*does not support mask.*")
@curvatures
def test_masked_rows(float64, curvature):
    """Masked positions are left out of p, though not of V."""
    case = normalized("layer of sequences", curvature)
    case.x[0, 1:] = 0
    case.x[2, 2] = 0
    case.layers.insert(0, layers.Masking())
    assert max(case.run()) < 1e-9


def test_masked_statistics(float64):
    """Batch normalization takes the mask in its statistics, and so does p."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4, 3, 2))
    x[0, 1:] = x[2, 2] = 0
    keep = np.any(x != 0, -1, keepdims=True)
    norm = layers.BatchNormalization(epsilon=0.1)
    model = keras.Sequential([layers.Masking(), norm])
    model.build((4, 3, 2))
    options = {"norm_damping": 0.2, "norm_curvature": "full"}
    model.compile(
        tfkfac.KFAC(fisher="empirical", model=model, **ONE_UPDATE, **options),
        loss=keras.losses.MeanSquaredError(),
        run_eagerly=True,
    )
    model.train_on_batch(x, y)
    N = keep.sum()
    n = N + keras.config.epsilon()  # Keras counts like that
    mean = (x * keep).sum((0, 1)) / n
    variance = (keep * (x - mean) ** 2).sum((0, 1)) / n
    xhat = (x - mean) / np.sqrt(variance + 0.1)
    g = keep * (xhat - y)  # of the mean over 2 features, gamma = 1, beta = 0
    p = np.hstack([(g * xhat).sum(1), g.sum(1)])
    U = np.linalg.solve(p.T @ p / N + 0.2 * np.eye(4), p.sum(0) / N)
    expected = np.array([1, 1, 0, 0]) - ONE_UPDATE["learning_rate"] * U
    trained = np.concatenate([norm.gamma, norm.beta])
    np.testing.assert_allclose(trained, expected, rtol=1e-9)


def test_shared_norm(float64):
    """Each use of a layer adds the examples that it saw."""
    case = normalized("layer of sequences", "full")
    case.layers.insert(3, case.layers[1])
    assert max(case.run()) < 1e-9


def test_above_a_convolution(float64):
    """Batch statistics couple the examples in the factors below."""
    below = layers.Conv2D(3, 2, padding="same", use_bias=False)
    case = single(below, (3, 4, 2), batch=4)
    norms = [layers.BatchNormalization(), layers.GroupNormalization(3)]
    case.layers[1:1] = [norms[0], layers.Conv2D(3, 2), norms[1]]
    case.keras_options = {"norm_curvature": "unitwise"}
    assert max(case.run()) < 1e-9


@few
def test_float32(kind):
    """float32 keeps 1e-5 where the damped factors are well conditioned."""
    case = normalized(kind, "unitwise", count=8, options={"damping": 1.0})
    case.x = case.x.astype("float32")
    assert max(case.run()) < 1e-5
    assert case.condition() <= 100


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
@pytest.mark.parametrize(
    "kind", ["batch", "batch of images", "no scale", "as on a GPU"]
)
def test_gradient_below_in_float32(monkeypatch, kind, fisher):
    """What comes down through batch normalization has an own way there."""
    shape = (8, 5) if kind == "batch" else (8, 3, 4, 5)
    if kind == "as on a GPU":  # Where the forward operation runs once more.
        devices = tf.config.list_logical_devices
        monkeypatch.setattr(
            tf.config,
            "list_logical_devices",
            lambda kind=None: [None] if kind == "GPU" else devices(kind),
        )
    taken, start = [], None
    way = normalization._FusedGradient.input_gradient

    def note(self, gradient):
        taken.append(way(self, gradient))
        return taken[-1]

    monkeypatch.setattr(normalization._FusedGradient, "input_gradient", note)
    found = []
    for dtype in ("float32", "float64"):
        keras.utils.clear_session()  # The names count anew.
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [
                keras.Input(shape[1:]),
                layers.Dense(4, dtype=dtype),
                layers.BatchNormalization(
                    scale=kind != "no scale", dtype=dtype
                ),
                layers.Activation("tanh", dtype=dtype),
                layers.Flatten(dtype=dtype),
                layers.Dense(3, dtype=dtype),
            ]
        )
        start = start or model.get_weights()
        model.set_weights(start)
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, dtype=dtype
        )
        optimizer = tfkfac.KFAC(0.0, fisher=fisher, seed=3, model=model)
        model.compile(optimizer, loss)
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=shape) + 2, np.arange(8) % 3
        model.train_on_batch(x.astype(dtype), y)
        found.append(optimizer.curvature.state())
    # The empirical Fisher takes the gradients of the training step.
    assert len(taken) == (1 if fisher == "sampled" else 0)
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        if name.endswith("moment"):
            a, b = (state[name] for state in found)
            assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), name


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_gradient_below_a_scale_that_is_not_one(fisher, scale):
    """By hand; in float32, where the gradient comes down another way.

    For s = gamma xhat + beta and g = dL/ds of B rows
        dL/dx = gamma / sqrt(variance + epsilon)
                (g - sum g / B - xhat sum(g xhat) / B).
    """
    rng = np.random.default_rng(0)
    B, x = 8, rng.normal(size=(8, 5)) + 1
    y = np.zeros(B, int)  # Which is what is sampled, too.
    norm = layers.BatchNormalization(scale=scale, epsilon=0.1)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4, name="below"),
            norm,
            layers.Activation("tanh"),
            layers.Dense(3),
        ]
    )
    gamma = np.array([0.1, -2.0, 5.0, 0.5]) if scale else np.ones(4)
    if scale:
        norm.gamma.assign(gamma)
    norm.beta.assign([0.5, -0.3, 0.2, 0.0])
    (W, b), (W_top, b_top) = (
        [v.numpy().astype("float64") for v in model.layers[i].variables]
        for i in (0, -1)
    )
    beta = norm.beta.numpy().astype("float64")
    optimizer = tfkfac.KFAC(
        0.0,
        fisher=fisher,
        factor_decay=0.0,
        likelihood=injected(tfkfac.Categorical, y),
        model=model,
    )
    model.compile(optimizer, cross_entropy())
    model.train_on_batch(x.astype("float32"), y)

    s = x @ W + b
    deviation = np.sqrt(s.var(0) + 0.1)
    xhat = (s - s.mean(0)) / deviation
    h = np.tanh(gamma * xhat + beta)
    p = np.exp(h @ W_top + b_top)
    g = p / p.sum(1, keepdims=True) - np.eye(3)[y]
    g = g @ W_top.T * (1 - h**2)
    g = g - g.mean(0) - xhat * (g * xhat).mean(0)
    g *= gamma / deviation
    found = optimizer.moments()["below/output_factor"][0]
    assert relative_error(found, g.T @ g / B) < 1e-5


def moments_of_a_step(graph, moves_first):
    """Those of a step whose scales and shifts move before K-FAC's update."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    x, y = np.random.default_rng(0).normal(size=(8, 4)), np.arange(8) % 3
    norm = layers.BatchNormalization()
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5), norm, layers.Dense(3)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = tfkfac.KFAC(seed=3, model=model)
    model.compile(optimizer, loss)
    rest = [v for v in model.trainable_variables if "norm" not in v.path]

    def step():
        with tf.GradientTape() as tape:
            value = loss(y, model(tf.constant(x), training=True))
        gradients = tape.gradient(value, rest)
        if moves_first:
            norm.gamma.assign_add(keras.ops.ones_like(norm.gamma))
            norm.beta.assign_add(keras.ops.ones_like(norm.beta))
        optimizer.apply(gradients, rest)

    (tf.function(step) if graph else step)()
    state = optimizer.curvature.state()
    return {k: v for k, v in state.items() if k.endswith("moment")}


@pytest.mark.parametrize("graph", [False, True])
def test_scale_that_moves_before_the_statistics(graph):
    """They are those of the forward pass, whatever moved since."""
    expected = moments_of_a_step(graph, moves_first=False)
    found = moments_of_a_step(graph, moves_first=True)
    assert len(found) == 5
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, 1e-6, 1e-9, err_msg=name)
