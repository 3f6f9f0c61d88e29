"""Gradient noise that falls with the risk, in the noisy quadratic model."""

import dataclasses
import itertools

import numpy as np
import pytest

from tools.quadratic import falling, model, risk, search, study

# L_0 = 1/2 h s = 1; with the batch size 1 and the rate 1/2.
ONE = model.from_columns([1.0], [1.0], [2.0])
SMALL = model.from_columns(
    1 / np.arange(1, 21), noise=1 / np.arange(1, 21) ** 0.5
)


def first(count, *arguments):
    """Returns the risks after the first steps, of the first setting."""
    made = itertools.islice(falling.risks(*arguments), count)
    return [float(found[0]) for found in made]


@pytest.mark.parametrize(
    ("kind", "exponent", "memory", "expected"),
    [
        # E[theta^2] is 2, then 2/4 + 1/4 = 3/4 and, with 3/8 of the noise,
        # 3/16 + 3/32 = 9/32; squared, 9/64 of the noise, 57/256.
        ("momentum", 1, 0.0, [3 / 8, 9 / 64]),
        ("momentum", 2, 0.0, [3 / 8, 57 / 512]),
        ("momentum", 0, 0.0, [3 / 8, 7 / 32]),
        # E[m^2] is 3, E[theta m] 1/2; then m^2 is
        # 3/4 + 1/2 + 3/4 + 3/8 = 19/8, theta^2 3/4 - 1 + 19/32 = 11/32.
        ("momentum", 1, 0.5, [3 / 8, 11 / 64]),
        # a^2 is 1/2 + 1/2 + 3/16 = 19/16, a theta 1/2 + 3/8 = 7/8; then
        # a^2 is 19/64 + 7/32 + 9/128 = 75/128.
        ("ema", 1, 0.5, [19 / 32, 75 / 256]),
    ],
)
def test_two_steps_by_hand(kind, exponent, memory, expected):
    found = first(2, ONE, kind, 1, exponent, 0.5, memory)
    assert found == pytest.approx(expected, rel=1e-15)


def test_the_noise_is_that_of_all_coordinates():
    """Of two, L_0 = 2, after a step 7/8: the noise falls to 7/16 of it."""
    two = model.from_columns([2.0, 1.0], [1.0, 1.0], [1.5, 1.0])
    # 0 + 1/4, 1/4 + 1/4; then 0 + 7/64, 1/8 + 7/64, with half the curvature.
    expected = [1 / 4 + 1 / 4, 1 / 4 * 1 / 4 + 1 / 8 * 1 / 4 + 1 / 16]
    start = two.initial_risk
    assert start == 2
    scale = expected[0] / start
    expected[1] = scale / 4 + 0.5 * (0.5 / 4 + scale / 4)
    found = first(2, two, "momentum", 1, 1.0, 0.5)
    assert found == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("kind", ["momentum", "ema"])
def test_noise_that_stays_is_the_closed_form(kind):
    *_, last = itertools.islice(
        falling.risks(SMALL, kind, 3, 0.0, [0.3, 1.2], [0.9, 0.2]), 40
    )
    expected = getattr(risk, kind)(SMALL, 3, 40, [0.3, 1.2], [0.9, 0.2])
    assert last == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(("kind", "memory"), [("momentum", 0.5), ("ema", 0.7)])
def test_noise_of_the_loss_where_a_run_is(kind, memory):
    """With the exponent 1 it has the expectation of the model's."""
    noisy = model.from_columns([1.0, 0.5, 0.2], [0.4, 0.5, 0.1])
    rng, runs = np.random.default_rng(0), 200_000
    theta = rng.normal(size=(runs, 3))
    velocity, average, h = 0 * theta, theta, noisy.curvature
    for _ in range(4):
        loss = 0.5 * (theta**2 @ h) / noisy.initial_risk
        deviation = np.sqrt(loss[:, np.newaxis] * noisy.noise / 2)
        gradient = h * theta + deviation * rng.normal(size=theta.shape)
        kept = memory if kind == "momentum" else 0.0
        velocity = kept * velocity + gradient
        theta = theta - 0.6 * velocity
        average = memory * average + (1 - memory) * theta
    samples = 0.5 * (average if kind == "ema" else theta) ** 2 @ h
    expected = first(4, noisy, kind, 2, 1.0, 0.6, memory)[-1]
    error = samples.std() / runs**0.5
    assert error < 0.01 * expected
    assert abs(samples.mean() - expected) < 3 * error


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "ema"])
def test_the_search_is_that_of_noise_that_stays(optimizer):
    """Within 1 % of the steps that the closed forms give."""
    asked = study.Question(SMALL, optimizer, 0.0, 100, 0.05)
    steps, _, found = falling.least_steps(optimizer, SMALL, 100, 0.0, 0.05)
    expected = study.answer(asked)
    assert steps == pytest.approx(expected["steps"], rel=0.01, abs=1)
    assert found["learning_rate"] > 0


@pytest.mark.parametrize("batch_size", [1, 16])
def test_sgd_against_all_rates(batch_size):
    """No rate of 2,000 is sooner at the target, with noise like the loss."""
    asked = study.Question(
        SMALL, "sgd", 0.0, batch_size, 0.05, noise_exponent=1.0
    )
    answer = study.answer(asked)
    rates = 2 / (1 + np.exp(-np.linspace(-10, 8, 2_000)))
    with np.errstate(over="ignore", invalid="ignore"):
        made = falling.risks(SMALL, "momentum", batch_size, 1.0, rates)
        least = 1 + next(
            i for i, found in enumerate(made) if np.nanmin(found) <= 0.05
        )
    assert answer["steps"] == least and answer["risk"] <= 0.05
    assert "bound" not in answer
    staying = dataclasses.replace(asked, noise_exponent=0.0)
    assert least < study.answer(staying)["steps"]


def test_a_target_that_is_out_of_reach():
    asked = study.Question(
        SMALL, "sgd", 0.0, 1, 0.05, max_steps=5, noise_exponent=1.0
    )
    with pytest.raises(search.UnreachableError, match="in 5 steps, only"):
        study.answer(asked)
    with pytest.raises(search.UnreachableError, match="must be greater than 0"):
        study.answer(dataclasses.replace(asked, target=-1.0))
