"""Tuned hyperparameters, schedules, and the least steps to a target."""

import math

import numpy as np
import pytest

from tools.quadratic import bounds, model, risk, schedule, search, study

SMALL = model.from_columns(
    1 / np.arange(1, 21), noise=1 / np.arange(1, 21) ** 0.5
)


def ask(optimizer, batch_size, target=0.05, noisy=SMALL, **options):
    question = study.Question(
        noisy, optimizer, options.pop("power", 0.0), batch_size, target,
        **options,
    )  # fmt: skip
    return study.answer(question)


@pytest.mark.parametrize("answer", [1, 2, 3, 10, 999, 1000, 1001, 123_456])
@pytest.mark.parametrize("guess", [1, 1000, 10**7])
def test_the_least_steps_of_a_known_curve(answer, guess):
    tried = []

    def best(t):
        tried.append(t)
        return -0.7 * math.log(t - 0.5 if t > 1 else 0.5), t

    target = (answer - 0.5) ** -0.7 * (1 + 1e-12)
    found = search.least_steps(best, target, guess, 10**8)
    assert found[0] == found[2] == answer
    assert found[1] == pytest.approx(target)
    assert len(set(tried)) == len(tried) < 40


def test_a_curve_that_does_not_get_there():
    with pytest.raises(search.UnreachableError, match="in 1000 steps, only 2"):
        search.least_steps(lambda t: (math.log(2), None), 1.0, 3, 1000)


@pytest.mark.parametrize("batch_size", [4, 32, 1000])
def test_sgd_against_all_rates_step_by_step(batch_size):
    """No rate of 5,000 hits the target sooner, by equation (3)."""
    found = ask("sgd", batch_size)
    rates = 2 / (1 + np.exp(-np.linspace(-12, 8, 5_000)))[:, np.newaxis]
    h, c = SMALL.curvature, SMALL.noise
    moment, first = np.ones((len(rates), 20)), 0
    while not (0.5 * moment @ h <= 0.05).any():
        moment = (1 - rates * h) ** 2 * moment + rates**2 * c / batch_size
        first += 1
    assert found["steps"] == first
    best = rates[np.argmin(moment @ h), 0]
    assert found["learning_rate"] == pytest.approx(best, rel=5e-3)


@pytest.mark.parametrize("kind", ["momentum", "ema"])
@pytest.mark.parametrize("batch_size", [2, 1000])
def test_two_hyperparameters_against_all_settings(kind, batch_size):
    """No setting of a fine grid reaches the target in a step less."""
    found = ask(kind, batch_size)
    values = {
        name: found[name]
        for name in ("learning_rate", "momentum", "averaging")
        if name in found
    }
    function = getattr(risk, kind)
    reached = function(SMALL, batch_size, found["steps"], **values)
    assert reached == pytest.approx(found["risk"]) and reached <= 0.05
    memory = 1 - np.geomspace(1e-3, 1, 150)
    most = 2 * (1 + memory) if kind == "momentum" else np.full(150, 2.0)
    rates = most / (1 + np.exp(-np.linspace(-10, 8, 400)))[:, np.newaxis]
    less = function(SMALL, batch_size, found["steps"] - 1, rates, memory)
    assert less.min() > 0.05
    assert found["steps"] <= ask("sgd", batch_size)["steps"]


def test_the_best_of_many_local_minima():
    """Large curvatures oscillate; a grid five times as fine gives 56 steps."""
    noisy = model.power_law(10_000)
    assert ask("momentum", 65536, 0.01, noisy, power=0.25)["steps"] <= 56


def test_momentum_has_its_limits():
    fixed = ask("momentum", 4, momenta=(0.5, 0.5))
    assert fixed["momentum"] == pytest.approx(0.5)
    rate = fixed["learning_rate"]
    assert fixed["effective_learning_rate"] == pytest.approx(2 * rate)
    none = ask("momentum", 4, momenta=(0.0, 0.0))
    plain = ask("sgd", 4)
    assert none["steps"] == plain["steps"]
    assert none["learning_rate"] == pytest.approx(
        plain["learning_rate"], rel=1e-4
    )


def test_the_gradient_of_a_schedule():
    """Central differences, with rates near 2 / h_1 and at 1 / h_1."""
    random = np.random.default_rng(0)
    n = np.array([3, 1, 20, 5, 2])
    rates = np.array([1.99, 1.0, 0.3, 1e-3, random.uniform()])
    value, gradient = schedule.risk_and_gradient(SMALL, 3, n, rates)
    moment = np.ones(20)
    for rate in np.repeat(rates, n):
        x = rate * SMALL.curvature
        moment = (1 - x) ** 2 * moment + rate**2 * SMALL.noise / 3
    assert value == pytest.approx(0.5 * moment @ SMALL.curvature, rel=1e-12)
    for j in range(5):
        shift = 1e-6 * np.eye(5)[j]
        above, below = (
            schedule.risk_and_gradient(SMALL, 3, n, rates + sign * shift)[0]
            for sign in (1, -1)
        )
        assert gradient[j] == pytest.approx((above - below) / 2e-6, rel=1e-6)


def test_the_pieces_of_a_schedule():
    assert schedule.durations(7).tolist() == [1] * 7
    n = schedule.durations(1234)
    assert len(n) == 50 and n.sum() == 1234 and set(n) == {24, 25}


@pytest.mark.parametrize("steps", [1, 9, 40])
def test_one_coordinate_has_the_schedule_of_the_posterior_mean(steps):
    """Up to 50 steps the best schedule is the Kalman filter's, 1 / (N + c/hs).

    No algorithm does better: its risk is that of `bounds.bayes`.
    """
    h, c, s, batch_size = 2.0, 3.0, 5.0, 4
    one = model.from_columns([h], [c], [s])
    target = 0.5 * h / (1 / s + steps * batch_size * h**2 / c)
    found = ask("schedule", batch_size, target * (1 + 1e-9), one)
    assert found["steps"] == steps
    needed = bounds.bayes(one, batch_size, target)
    assert needed == pytest.approx(steps)
    t = np.arange(1, steps + 1)
    expected = 1 / (h * (t + c / (s * h**2 * batch_size)))
    assert found["learning_rates"] == pytest.approx(expected, rel=2e-3)
    assert found["final_learning_rate"] == found["learning_rates"][-1]


@pytest.mark.parametrize("batch_size", [1, 64])
def test_no_schedule_nearby_is_better(batch_size):
    found = ask("schedule", batch_size, noisy=model.power_law(50))
    rates = np.array(found["learning_rates"])
    n = schedule.durations(found["steps"])
    noisy, random = model.power_law(50), np.random.default_rng(0)
    value, _ = schedule.risk_and_gradient(noisy, batch_size, n, rates)
    assert value == pytest.approx(found["risk"]) and value <= 0.05
    assert rates.max() <= 2
    for size in (0.001, 0.01, 0.1, 1.0):
        for _ in range(50):
            other = rates * np.exp(size * random.normal(size=len(n)))
            other = np.minimum(other, 2 * (1 - 1e-6))
            other, _ = schedule.risk_and_gradient(noisy, batch_size, n, other)
            assert other > value * (1 - 1e-9)
    steps = ask("sgd", batch_size, noisy=noisy)["steps"]
    assert found["steps"] < steps


def test_unreachable_targets():
    for target in (0.0, -1.0, float("nan"), SMALL.initial_risk):
        with pytest.raises(search.UnreachableError, match="less than 1.79"):
            ask("sgd", 1, target)
    with pytest.raises(search.UnreachableError, match="no algorithm"):
        ask("sgd", 1, 1e-3, max_steps=1000)
    # More than the bound, but out of reach of a constant rate.
    with pytest.raises(search.UnreachableError, match="is not reached in 5000"):
        ask("sgd", 1, 0.01, max_steps=5000)
    fine = study.questions(SMALL, ["sgd"], [0.0], [1], 0.1)
    bad = study.questions(SMALL, ["sgd"], [0.0], [1], 9.0)
    with pytest.raises(search.UnreachableError):
        next(study.answers(fine + bad, processes=1))


def test_answers_come_in_order():
    asked = study.questions(SMALL, ["sgd", "ema"], [0.0, 0.5], [1, 4], 0.05)
    rows = list(study.answers(asked, processes=1))
    assert [(r["optimizer"], r["power"], r["batch_size"]) for r in rows] == [
        (q.optimizer, q.power, q.batch_size) for q in asked
    ]
    assert rows[3] == study.answer(asked[3])


def test_without_noise():
    """One coordinate is done in a step, two in two steps."""
    for curvature, steps in (([2.0], 1), ([2.0, 1.0], 2)):
        noisy = model.from_columns(curvature, [0.0] * len(curvature))
        found = ask("momentum", 1, 1e-9, noisy)
        assert found["steps"] == steps and found["bound"] == 0
        assert ask("schedule", 1, 1e-9, noisy)["steps"] == steps
