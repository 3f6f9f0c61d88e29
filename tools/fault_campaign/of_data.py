"""What is wrong with the data, and damage to the curvature."""

import functools

import keras
import numpy as np

import tfkfac
from tools.fault_campaign import faults, small
from tools.fault_campaign.small import X, Y


def _skipped(folder, x=X, y=Y, settings=None, **more):
    """The second batch counts for nothing: the run is that without it."""
    settings = settings or {}
    model, other = (
        small.compiled(compiles=small.GRAPH, **settings) for _ in range(2)
    )
    small.fit(model, x, y, epochs=1, **more)
    assert int(model.optimizer.skipped_steps) == 1
    small.fit(other, *small.without(1))
    small.assert_finite(model)
    small.assert_same(model, other)


def _sampled(value):
    weights = np.ones(len(X), "float32")
    weights[8] = value
    return {"sample_weight": weights}


for _text, _value in {"NaN": np.nan, "infinity": np.inf}.items():
    faults.add(
        "data",
        f"{_text} in an input",
        functools.partial(_skipped, x=small.spoilt(_value)),
    )
faults.add(
    "data",
    "NaN in a sample weight",
    functools.partial(_skipped, **_sampled(np.nan)),
)
for _name, _settings in {
    "eigen": {"inverter": "eigen"},
    "drift": {"refresh": "drift"},
    "staggered": {"refresh": "staggered"},
    "the empirical Fisher": {"fisher": "empirical"},
}.items():
    faults.add(
        "data",
        f"NaN in an input with {_name}",
        functools.partial(_skipped, x=small.spoilt(np.nan), settings=_settings),
    )


@faults.fault("data")
def NaN_in_a_label(folder):  # noqa: N802
    y = np.stack([Y, Y + 1, Y + 2], axis=1).astype("float32")
    bad = y.copy()
    bad[8, 1] = np.nan
    models = []
    for given, of in (
        (X, bad),
        (small.without(1)[0], np.delete(y, range(8, 16), 0)),
    ):
        model = small.compiled(compiles={"loss": "mse"})
        models.append(small.fit(model, given, of))
    small.assert_same(*models)


@faults.fault("data")
def NaN_in_a_micro_step(folder):  # noqa: N802
    """The window of 2 that it is in counts for nothing."""
    settings = {"gradient_accumulation_steps": 2}
    x = np.concatenate([X, X[:8]])
    y = np.concatenate([Y, Y[:8]])
    x[8] = np.nan
    model = small.fit(small.compiled(**settings), x, y)
    other = small.fit(small.compiled(**settings), x[16:], y[16:])
    small.assert_finite(model)
    small.assert_same(model, other)


@faults.fault("data")
def NaN_in_mixed_precision_with_batch_norm(folder):  # noqa: N802
    keras.config.set_dtype_policy("mixed_float16")
    layers = [
        keras.Input((6,)),
        keras.layers.Dense(4),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(3),
    ]
    model = small.compiled(keras.Sequential(layers))
    small.fit(model, small.spoilt(np.nan), epochs=2)
    assert all(np.isfinite(w).all() for w in model.get_weights())


def _always_bad(folder, compiles, **more):
    model = small.compiled(compiles=compiles, max_skipped_steps=3)
    bad = small.spoilt(np.nan, range(0, 24, 8))
    small.unchanged(model, lambda: small.fit(model, bad, epochs=4, **more))


_SKIPPED = r"KFAC skipped .*updates in a row.*(lower|look|Look)"
for _name, _compiles in {
    "in graphs": small.GRAPH,
    "in eager mode": {},
    "in steps taken at once": {**small.GRAPH, "steps_per_execution": 3},
}.items():
    faults.add(
        "data",
        f"NaN in every batch {_name}",
        functools.partial(_always_bad, compiles=_compiles),
        refused=_SKIPPED,
    )
faults.add(
    "data",
    "NaN in every batch under XLA",
    lambda folder: _always_bad(
        folder,
        {**small.GRAPH, "jit_compile": True},
        callbacks=[tfkfac.callbacks.StopOnSkippedSteps()],
    ),
    refused=_SKIPPED,
)


def _trains(folder, x, y=Y, **settings):
    """All stays finite, no step is skipped."""
    model = small.fit(small.compiled(**settings), x, y, epochs=3)
    small.assert_finite(model)
    assert int(model.optimizer.skipped_steps) == 0


for _name, _x in {
    "zeros": 0 * X,
    "3e38 in an input": small.spoilt(3e38),
    "one example again and again": np.repeat(X[:1], 24, axis=0),
    "inputs of 1e-20": X * 1e-20,
    "inputs of 1e6": X * 1e6,
    "a last batch of one example": X[:17],
    "one example in all": X[:1],
    "float64": X.astype("float64"),
    "float16": X.astype("float16"),
    "integers": (10 * X).astype("int64"),
    "bytes": (10 * np.abs(X)).astype("uint8"),
    "booleans": X > 0,
}.items():
    faults.add("data", _name, functools.partial(_trains, x=_x, y=Y[: len(_x)]))


@faults.fault("data")
def sample_weights_of_0(folder):
    """They move nothing."""
    model = small.compiled(momentum=0.0)
    small.unchanged(
        model, lambda: small.fit(model, sample_weight=np.zeros(len(X)))
    )
    small.assert_finite(small.fit(model))


@faults.fault("data")
def no_examples(folder):
    """Keras makes no step."""
    model = small.compiled()
    small.unchanged(model, lambda: small.fit(model, X[:0], Y[:0]))


def _refused_fit(folder, x=X, y=Y):
    model = small.compiled()
    small.unchanged(model, lambda: small.fit(model, x, y))


for _name, _x, _y, _said in (
    ("inputs of another width", X[:, :5], Y, "'hidden' is .*expected axis -1"),
    ("fewer labels than inputs", X, Y[:20], "same number of samples"),
    ("labels of 77", X, Y + 77, r"label value of \d+ .*valid range"),
    ("labels of -1", X, Y - 10, r"label value of -\d+ .*valid range"),
    ("inputs of text", np.full((24, 6), "a"), Y, "Invalid dtype: str"),
):
    faults.add(
        "data",
        _name,
        functools.partial(_refused_fit, x=_x, y=_y),
        refused=_said,
    )


def _damaged(folder, name, value):
    """A number of the curvature is spoilt: training goes on, all is finite."""
    model = small.fit(small.compiled(inverse_update_period=1))
    state = model.optimizer.curvature
    found = [n for n in state.state() if name in n]
    assert found, list(state.state())
    for key in found:
        damaged = state[key].numpy()
        damaged.flat[0] = value
        state[key].assign(damaged)
    small.assert_finite(small.fit(model, epochs=2))


for _name in ("moment", "weight", "inverse"):
    for _value in (np.nan, np.inf, -1e6):
        faults.add(
            "data",
            f"{_value} in each {_name} of the curvature",
            functools.partial(_damaged, name=_name, value=_value),
        )


def _said(folder, call) -> str:
    """Returns what the fault's process has said after a call."""
    call()
    return (folder / "output").read_text()


def _far(folder, damping, inverter, shift):
    """An update keeps to the KL bound, or it is reported that it may not."""
    x = X + np.float32(shift)
    model = small.compiled(
        inverter=inverter,
        damping=damping,
        kl_clip=1e-3,
        momentum=0.0,
        learning_rate=0.1,
    )

    def logits():
        z = model.predict(x, verbose=0).astype("float64")
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    before = logits()
    said = _said(folder, lambda: small.fit(model, x, batch_size=24))
    after = logits()
    kl = np.mean(np.sum(np.exp(before) * (before - after), axis=1))
    assert kl < 5e-3 or "rounding" in said.lower(), (kl, said)


for _inverter in ("eigen", "cholesky"):
    faults.add(
        "data",
        f"inputs of 3000 with {_inverter}",
        functools.partial(_far, damping=1e-3, inverter=_inverter, shift=3000),
    )


@faults.fault("data")
def a_damping_below_what_float32_holds(folder):
    """It is reported."""
    x = X * 100
    said = _said(
        folder,
        lambda: small.fit(
            small.compiled(inverter="eigen", damping=1e-9), x, epochs=2
        ),
    )
    assert "hidden" in said and "damping" in said, said


def _bright(folder, x):
    """A of a convolution without patches is A of its patches."""
    model = keras.Sequential(
        [
            keras.Input((16, 16, 8)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    # Of no decay: the moment of this batch alone.
    model = small.compiled(model, learning_rate=0.0, factor_decay=0.0)
    small.fit(model, x, Y[: len(x)])
    moment = model.optimizer.moments()["conv/input_factor"][0]
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
    rows = np.moveaxis(windows, 3, -1).reshape(-1, 72).astype("float64")
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    A = rows.T @ rows / len(x)
    d = np.diag(A)
    np.testing.assert_allclose(np.diag(moment), d, rtol=1e-3)
    least = np.linalg.eigvalsh(moment.astype("float64"))[0]
    rounding = 100 * np.finfo("float32").eps * np.linalg.norm(A, 2)
    expected = np.linalg.eigvalsh(A)[0]
    assert abs(least - expected) <= rounding, (least, expected, rounding)


_IMAGES = np.random.default_rng(1).normal(size=(8, 16, 16, 8)).astype("float32")
_PIXEL = _IMAGES.copy()
_PIXEL[0, 0, 0, 0] = 1e4
faults.add("data", "one bright pixel", functools.partial(_bright, x=_PIXEL))
faults.add(
    "data", "images of 1000", functools.partial(_bright, x=_IMAGES + 1000)
)
