"""The expected risk of the noisy quadratic model, computed in other ways."""

import dataclasses

import numpy as np
import pytest

from tools.quadratic import bounds, model, risk, schedule


def random_model(d=40, seed=0):
    """Curvature, noise and initial moments that have nothing in common."""
    random = np.random.default_rng(seed)
    h = np.geomspace(1, 1e-4, d)
    return model.from_columns(h, random.gamma(1, 1, d), random.gamma(1, 1, d))


def momentum_recursion(noisy, batch_size, steps, alpha, beta):
    """Equation (21), step by step."""
    x, s = alpha * noisy.curvature, noisy.moment
    n = alpha**2 * noisy.noise / batch_size
    v = np.array([s, 0 * s, 0 * s])
    one = np.ones_like(x)
    T = np.array([
        [(1 - x) ** 2, beta**2 * one, 2 * (1 - x) * beta],
        [x**2, beta**2 * one, -2 * beta * x],
        [-(1 - x) * x, beta**2 * one, (1 - 2 * x) * beta],
    ])  # fmt: skip
    for _ in range(steps):
        v = np.einsum("jki,ki->ji", T, v) + n
    return 0.5 * noisy.curvature @ v[0]


def ema_recursion(noisy, batch_size, steps, alpha, gamma):
    """The second moments of theta, the average and both (appendix D)."""
    x = alpha * noisy.curvature
    n = alpha**2 * noisy.noise / batch_size
    theta = average = both = noisy.moment
    for _ in range(steps):
        average = (
            gamma**2 * average
            + 2 * gamma * (1 - gamma) * (1 - x) * both
            + (1 - gamma) ** 2 * ((1 - x) ** 2 * theta + n)
        )
        both = gamma * (1 - x) * both + (1 - gamma) * ((1 - x) ** 2 * theta + n)
        theta = (1 - x) ** 2 * theta + n
    return 0.5 * noisy.curvature @ average


@pytest.mark.parametrize("steps", [1, 2, 3, 50, 1001])
@pytest.mark.parametrize(
    ("alpha", "memory"),
    [
        (0.5, 0.0), (1.0, 0.0), (1.5, 0.0), (1.0, 0.5), (1.9, 0.3),
        (1e-4, 0.9), (0.01, 0.81), (0.01, 0.99), (1e-6, 0.9999), (0.1, 0.9),
    ],
)  # fmt: skip
def test_closed_forms_are_the_recursions(steps, alpha, memory):
    """With (0.01, 0.81) the coordinate h = 1 is critically damped."""
    noisy = random_model()
    for recursion, closed in (
        (momentum_recursion, risk.momentum),
        (ema_recursion, risk.ema),
    ):
        expected = recursion(noisy, 3, steps, alpha, memory)
        found = closed(noisy, 3, steps, alpha, memory)
        assert found == pytest.approx(expected, rel=1e-11)
    if memory == 0:
        found = risk.sgd(noisy, 3, steps, alpha)
        assert found == pytest.approx(expected, rel=1e-12)


def test_momentum_at_large_rates():
    """Real negative roots, beyond alpha h = (1 + sqrt(beta))^2."""
    noisy = random_model()
    for steps in (1, 2, 7, 300):
        expected = momentum_recursion(noisy, 3, steps, 3.999, 0.9999)
        found = risk.momentum(noisy, 3, steps, 3.999, 0.9999)
        assert found == pytest.approx(expected, rel=1e-8)


def test_arrays_of_hyperparameters():
    noisy, rates, momenta = random_model(), [0.1, 0.3, 0.5], [[0.2], [0.8]]
    found = risk.momentum(noisy, 2, 20, rates, momenta)
    assert found.shape == (2, 3)
    assert found[1, 2] == risk.momentum(noisy, 2, 20, 0.5, 0.8)


def test_many_steps_by_doubling():
    """A million steps: T^t by repeated squaring, for one coordinate."""
    h, alpha, beta, steps = 1e-3, 1e-4, 0.99, 2**20
    x, n = alpha * h, alpha**2 * h
    T = np.zeros((4, 4))
    T[:3] = [
        [(1 - x) ** 2, beta**2, 2 * (1 - x) * beta, n],
        [x**2, beta**2, -2 * beta * x, n],
        [-(1 - x) * x, beta**2, (1 - 2 * x) * beta, n],
    ]
    T[3, 3] = 1
    for _ in range(20):
        T = T @ T
    expected = 0.5 * h * (T[0, 0] + T[0, 3])
    found = risk.momentum(model.from_columns([h]), 1, steps, alpha, beta)
    assert found == pytest.approx(expected, rel=1e-9)


def simulated(kind, noisy, power, batch_size, rates, memory, runs, seed=1):
    """theta(t) of equation (8) with Gaussian noise, [runs, d]."""
    random = np.random.default_rng(seed)
    h, shape = noisy.curvature, (runs, len(noisy.curvature))
    theta = random.normal(size=shape) * np.sqrt(noisy.moment)
    velocity, average = np.zeros(shape), theta
    deviation = np.sqrt(noisy.noise / batch_size)
    for rate in rates:
        gradient = h * theta + deviation * random.normal(size=shape)
        kept = velocity if kind == "momentum" else 0.0
        velocity = memory * kept + gradient / h**power
        theta = theta - rate * velocity
        average = memory * average + (1 - memory) * theta
    return average if kind == "ema" else theta


@pytest.mark.parametrize("kind", ["sgd", "momentum", "ema", "schedule"])
def test_simulation_of_ten_thousand_coordinates(kind):
    """Within the standard error, the sum and each coordinate alike."""
    power, batch_size, steps, runs = 0.25, 4, 60, 16
    noisy = dataclasses.replace(
        model.power_law(10_000), noise=0.5 / np.arange(1, 10_001)
    )
    rates, memory = np.full(steps, 0.4), 0.8
    if kind == "schedule":
        rates = np.repeat([1.5, 0.5, 0.1, 0.02], 15)
    theta = simulated(kind, noisy, power, batch_size, rates, memory, runs)
    risks = 0.5 * noisy.curvature * theta**2
    for weight in (np.ones(10_000), 1 / noisy.initial_risks):
        ours = dataclasses.replace(noisy, count=weight).preconditioned(power)
        if kind == "schedule":
            expected, _ = schedule.risk_and_gradient(
                ours, batch_size, [15] * 4, rates[::15]
            )
        else:
            more = [memory] if kind != "sgd" else []
            expected = getattr(risk, kind)(ours, batch_size, steps, 0.4, *more)
        samples = risks @ weight
        error = samples.std(ddof=1) / runs**0.5
        assert abs(samples.mean() - expected) < 2.5 * error
    # The last comparison is sharp: every coordinate counts alike there.
    assert error < 0.01 * expected


def test_bounds_hold_and_are_approached():
    """Theorems 1 and 2, equation (9): above the risk, and equal in the end."""
    noisy = random_model().preconditioned(0.5)
    for steps in (1, 5, 40, 2000):
        pairs = [
            (risk.sgd(noisy, 2, steps, 0.7), bounds.sgd(noisy, 2, steps, 0.7)),
            (
                risk.momentum(noisy, 2, steps, 0.7, 0.9),
                bounds.momentum(noisy, 2, steps, 0.7, 0.9),
            ),
            (
                risk.ema(noisy, 2, steps, 0.7, 0.9),
                bounds.ema(noisy, 2, steps, 0.7, 0.9),
            ),
        ]
        for exact, bound in pairs:
            bound = noisy.total(bound)
            assert exact <= bound
            if steps == 2000:
                assert exact == pytest.approx(bound, rel=1e-9)
            elif steps == 1:
                assert exact < 0.9 * bound


def test_first_terms_are_the_risk_without_noise():
    noisy = dataclasses.replace(random_model(), noise=np.zeros(40))
    for name in ("momentum", "ema"):
        exact = getattr(risk, name)(noisy, 1, 17, 0.7, 0.6)
        bound = noisy.total(getattr(bounds, name)(noisy, 1, 17, 0.7, 0.6))
        assert exact == pytest.approx(bound, rel=1e-10)


def test_the_bounds_refuse_where_they_divide_by_zero():
    noisy = model.from_columns([1.0, 0.25])
    with pytest.raises(ValueError, match="momentum 0.25 is"):
        bounds.momentum(noisy, 1, 5, 1.0, 0.25)
    with pytest.raises(ValueError, match="averaging coefficient 0.75 is"):
        bounds.ema(noisy, 1, 5, 1.0, 0.75)


@pytest.mark.parametrize(("x", "beta"), [(0.3, 0.5), (1e-3, 0.5), (2.5, 0.9)])
def test_roots_and_eigenvalues(x, beta):
    """Equation (7), and (22) against the matrix of (21)."""
    r_1, r_2 = bounds.momentum_roots(x, beta)
    assert np.sort_complex([r_1, r_2]) == pytest.approx(
        np.sort_complex(np.roots([1, -(1 - x + beta), beta]).astype(complex))
    )
    T = [
        [(1 - x) ** 2, beta**2, 2 * (1 - x) * beta],
        [x**2, beta**2, -2 * beta * x],
        [-(1 - x) * x, beta**2, (1 - 2 * x) * beta],
    ]
    expected = np.linalg.eigvals(T).astype(complex)
    found = bounds.transition_eigenvalues(x, beta)
    assert np.sort_complex(found) == pytest.approx(np.sort_complex(expected))
    critical = (1 - 0.1) ** 2
    found = bounds.transition_eigenvalues(0.01, critical)
    assert found == pytest.approx(np.full(3, critical), abs=1e-6)


def test_information_bounds_by_hand():
    noisy = model.power_law(10_000)
    assert bounds.information(noisy, 1, 0.01) == pytest.approx(500_000)
    assert bounds.information(noisy, 10, 0.01) == pytest.approx(50_000)
    # One coordinate: 1/2 h / (1 / s + N h^2 / c) with h = 2, c = 3, s = 5.
    one = model.from_columns([2.0], [3.0], [5.0])
    target = 1 / (1 / 5 + 28 * 4 / 3)
    assert bounds.bayes(one, 4, target) == pytest.approx(7)
    assert bounds.information(one, 4, target) == pytest.approx(
        1.5 / (8 * target)
    )
    assert bounds.bayes(one, 4, 5.0) == 0
    # As d / 2N where the start tells little.
    late = bounds.bayes(noisy, 1, 1e-5), bounds.information(noisy, 1, 1e-5)
    assert late[0] == pytest.approx(late[1], rel=1e-3) and late[0] < late[1]


def test_bounds_do_not_depend_on_the_preconditioner():
    noisy = random_model()
    for bound in (bounds.bayes, bounds.information):
        assert bound(noisy.preconditioned(0.7), 3, 0.1) == pytest.approx(
            bound(noisy, 3, 0.1)
        )


def test_bins_keep_count_and_initial_risk():
    noisy = random_model(1000)
    binned = noisy.binned(30)
    assert len(binned.curvature) <= 30 and binned.dimension == 1000
    assert binned.initial_risk == pytest.approx(noisy.initial_risk)
    assert binned.total(binned.noise) == pytest.approx(noisy.total(noisy.noise))
    assert np.all(np.diff(binned.curvature) < 0)
    alike = model.from_columns([0.5] * 8)
    one = alike.binned(3)
    assert one.count == [8] and one.curvature == [0.5]
    assert risk.sgd(one, 2, 9, 0.3) == pytest.approx(risk.sgd(alike, 2, 9, 0.3))


def test_spectra_from_files(tmp_path):
    text, array = tmp_path / "h.txt", tmp_path / "h.npy"
    text.write_text("# h c s\n0.5, 2, 3\n\n1 4 5  # the largest\n")
    found = model.load(text)
    assert found.curvature.tolist() == [1.0, 0.5]
    assert found.noise.tolist() == [4.0, 2.0]
    assert found.moment.tolist() == [5.0, 3.0]
    np.save(array, np.array([1, 3, 2]))
    found = model.load(array)
    assert found.curvature.tolist() == found.noise.tolist() == [3, 2, 1]
    assert found.moment.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\n0\n", "row 2: the curvature 0.0 must be finite and positive"),
        ("1\n-1\n", "row 2: the curvature -1.0"),
        ("1 nan\n", "row 1: the noise nan"),
        ("1 1 -2\n", "row 1: the initial second moment -2.0"),
        ("1\n2 3\n", "one row of 1 to 3 numbers"),
        ("1\nhigh\n", "could not convert"),
        ("1 2 3 4\n", "shape"),
        ("# nothing\n", "shape"),
    ],
)
def test_bad_spectra(tmp_path, content, message):
    path = tmp_path / "h.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        model.load(path)
    assert str(path) in str(error.value)
