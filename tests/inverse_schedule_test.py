"""Which blocks are inverted when."""

import keras
import numpy as np
import pytest

import tfkfac

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 16, 6)).astype("float32")
Y = RNG.integers(0, 3, (12, 16))
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
NAMES = ("first", "second", "third", "logits")


def make(run_eagerly=False, **settings):
    keras.utils.clear_session(free_memory=False)
    units = (8, 7, 5, 3)
    model = keras.Sequential(
        [keras.Input((6,))]
        + [
            keras.layers.Dense(n, activation="tanh", name=name)
            for n, name in zip(units, NAMES)
        ]
    )
    for i, v in enumerate(model.trainable_variables):
        rng = np.random.default_rng(i)
        v.assign(rng.normal(size=v.shape) / np.sqrt(v.shape[0]))
    settings = {"damping": 0.1, "inverse_update_period": 5, **settings}
    optimizer = tfkfac.KFAC(0.05, model=model, **settings)
    model.compile(optimizer, LOSS, run_eagerly=run_eagerly)
    return model, optimizer


def inverses(optimizer):
    state = optimizer.curvature.state()
    return {name: state[f"{name}/input_factor/inverse"] for name in NAMES}


def refreshed(model, optimizer, steps=range(12)):
    """For each step, the names of the layers that were inverted in it."""
    found, before = [], inverses(optimizer)
    for i in steps:
        model.train_on_batch(X[i], Y[i])
        after = inverses(optimizer)
        found.append([n for n in NAMES if (after[n] != before[n]).any()])
        before = after
    return found


def weights(model):
    return np.concatenate([v.numpy().ravel() for v in model.variables])


def test_staggered_takes_turns():
    """All at first; then one turn a period, apart from factor updates."""
    model, optimizer = make(
        refresh="staggered", factor_update_period=3, inverse_update_period=6
    )
    found = refreshed(model, optimizer)
    assert found[0] == list(NAMES)
    assert sorted(sum(found[6:], [])) == sorted(NAMES)
    assert [len(names) for names in found[6:]] == [0, 1, 1, 0, 1, 1]


def test_staggered_takes_factor_updates_where_there_is_no_other():
    found = refreshed(*make(refresh="staggered", inverse_update_period=2))
    assert all(found) and max(map(len, found[1:])) < 4
    for i in range(1, 11, 2):
        assert sorted(found[i] + found[i + 1]) == sorted(NAMES)


def test_a_turn_inverts_the_factor_of_its_step():
    """With the damping of factored damping, by hand."""
    model, optimizer = make(refresh="staggered")
    *_, (name,) = refreshed(model, optimizer, range(4))
    state = optimizer.curvature.state()
    A, G = (
        state[f"{name}/{kind}/moment"][0] / state[f"{name}/{kind}/weight"]
        for kind in ("input_factor", "output_factor")
    )
    pi = np.sqrt(np.diag(A).mean() / np.diag(G).mean())
    expected = np.linalg.inv(A + pi * np.sqrt(0.1) * np.eye(len(A)))
    np.testing.assert_allclose(inverses(optimizer)[name][0], expected, 1e-4)


def test_drift_of_nothing_is_periodic():
    """All have moved by more than 0; none by more than infinity."""
    results = {}
    for name, settings in {
        "periodic": {},
        "all": {"refresh": "drift", "drift_tolerance": 0},
        "none": {"refresh": "drift", "drift_tolerance": float("inf")},
    }.items():
        model, optimizer = make(**settings)
        results[name] = refreshed(model, optimizer), weights(model)
    assert results["periodic"][0] == results["all"][0]
    # Some processors round matrices that are inverted together in other ways.
    np.testing.assert_allclose(
        results["periodic"][1], results["all"][1], rtol=1e-5, atol=1e-6
    )
    assert results["none"][0] == [list(NAMES)] + 11 * [[]]


def test_drift_inverts_what_has_moved():
    """By |new - old| / |old| of either factor, as it was last inverted."""
    tolerance = 0.3
    model, optimizer = make(
        refresh="drift", drift_tolerance=tolerance, factor_decay=0.5
    )

    def factors():
        state = optimizer.curvature.state()
        return {
            name: [
                state[f"{name}/{kind}/moment"] / state[f"{name}/{kind}/weight"]
                for kind in ("input_factor", "output_factor")
            ]
            for name in NAMES
        }

    last, seen = {}, set()
    for i in range(12):
        (names,) = refreshed(model, optimizer, [i])
        new = factors()
        expected = []
        for name in NAMES if i % 5 == 0 else ():
            old = last.get(name)
            moved = np.inf if old is None else max(
                np.linalg.norm(n - o) / np.linalg.norm(o)
                for n, o in zip(new[name], old)
            )  # fmt: skip
            if moved > tolerance:
                expected.append(name)
        assert names == expected
        last |= {name: new[name] for name in names}
        seen.add(len(names))
    assert seen & {1, 2, 3}  # Some have moved, and others have not.


@pytest.mark.parametrize(
    ("times", "inverted"),
    [(1.7, True), (1.5, False), (0.45, False), (0.35, True)],
)
@pytest.mark.parametrize("side", ["input_factor", "output_factor"])
def test_drift_is_relative_to_the_factor_last_inverted(side, times, inverted):
    """|new - old| is 0.7, 0.5, 0.55 and 0.65 |old|, above and below 0.6.

    Of |new| it is 0.41, 0.33, 1.2 and 1.9.
    """
    assert is_inverted_after(side, times, tolerance=0.6) == inverted


def is_inverted_after(side, times, tolerance):
    """Whether a layer is, whose one factor is `times` what it was before.

    Its weights are 0 and stay so, and with them the distribution of the
    classes: A is quadratic in the inputs, G in the sample weights.
    """
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(
                3, use_bias=False, kernel_initializer="zeros", name="logits"
            ),
        ]
    )
    optimizer = tfkfac.KFAC(
        0.0,
        damping=0.1,
        factor_decay=0.0,
        fisher="empirical",
        inverse_update_period=1,
        refresh="drift",
        drift_tolerance=tolerance,
        model=model,
    )
    model.compile(optimizer, LOSS)
    x, y, w = X[0], Y[0], np.ones(16, "float32")
    model.train_on_batch(x, y, w)
    before, old = optimizer.curvature.state(), optimizer.moments()
    if side == "input_factor":
        model.train_on_batch(x * np.sqrt(times), y, w)
    else:
        model.train_on_batch(x, y, w * np.sqrt(times))
    after, new = optimizer.curvature.state(), optimizer.moments()
    for name in ("input_factor", "output_factor"):
        ratio = times if name == side else 1.0
        name = f"logits/{name}"
        np.testing.assert_allclose(new[name], ratio * old[name], 1e-5, 1e-6)
    changed = [
        (after[name] != before[name]).any()
        for name in before
        if name.endswith("/inverse")
    ]
    assert len(changed) == 2
    assert any(changed) == all(changed)  # Both, as pi is of both.
    return changed[0]


@pytest.mark.parametrize("refresh", ["staggered", "drift"])
def test_graph_eager_and_restored(refresh, tmp_path):
    """One trajectory, in mid-period too."""
    settings = {"refresh": refresh, "drift_tolerance": 0.1}
    model, optimizer = make(**settings)
    refreshed(model, optimizer)
    eager, eager_optimizer = make(run_eagerly=True, **settings)
    refreshed(eager, eager_optimizer)
    np.testing.assert_allclose(weights(eager), weights(model), 1e-4, 1e-6)
    half, half_optimizer = make(**settings)
    refreshed(half, half_optimizer, range(7))
    half.save(tmp_path / "half.keras")
    restored = keras.models.load_model(tmp_path / "half.keras")
    tfkfac.attach(restored)
    assert restored.optimizer.refresh == refresh
    refreshed(restored, restored.optimizer, range(7, 12))
    np.testing.assert_array_equal(weights(restored), weights(model))
