"""Updates that are compared."""

import dataclasses

import classifier
import numpy as np
import pytest
import verified

from tfkfac.verification.outcome import Outcome


@pytest.fixture(scope="module")
def outcome():
    data = classifier.X, classifier.Y
    check = verified.verification(verified.square())
    (update,) = check.updates_of(data).values()
    return Outcome.of(update)


def results(findings):
    return [f.result for f in findings]


def test_what_is_kept(outcome):
    assert outcome.is_complete and outcome.is_mean and not outcome.half
    assert not outcome.is_doubled
    assert sorted(outcome.factors) == [
        (path, i) for path in ("hidden", "logits") for i in (0, 1)
    ]
    squares = sum(np.sum(x**2) for x in outcome.V.values())
    assert outcome.gradient_norm() ** 2 == pytest.approx(squares)


def test_factors(outcome):
    assert results(outcome.compare_factors("x", outcome, "")) == ["ok"] * 4
    factors = {key: x * (1 + key[1]) for key, x in outcome.factors.items()}
    other = dataclasses.replace(outcome, factors=factors)
    found = outcome.compare_factors("x", other, "why.")
    assert results(found) == ["ok", "FAILED"] * 2
    assert found[1].sentence == (
        "its output factor becomes 2 times as large; why."
    )


def test_gradients(outcome):
    twice = {key: 2 * x for key, x in outcome.V.items()}
    other = dataclasses.replace(outcome, V=twice)
    found = outcome.compare_gradients("x", other, 1.0, "")
    assert results(found) == ["FAILED"] * 2 + ["ok"] * 2
    found = outcome.compare_gradients("x", other, 2.0, "")
    assert results(found) == ["ok"] * 2 + ["FAILED"] * 2


def test_a_factor_that_is_missing(outcome):
    factors = dict(outcome.factors)
    del factors["hidden", 1]
    other = dataclasses.replace(outcome, factors=factors)
    found = outcome.compare_factors("x", other, "why.")
    assert results(found) == ["ok", "FAILED", "ok", "ok"]
    assert found[1].sentence == "it has no output factor; why."


def test_no_bound_lets_all_pass(outcome):
    half = dataclasses.replace(outcome, half=True)
    nothing = {key: 0 * x for key, x in outcome.U.items()}
    other = dataclasses.replace(half, U=nothing)
    found = half.compare_gradients("x", other, 1.0, "")
    assert results(found) == ["ok"] * 2 + ["FAILED"] * 2


def test_gradients_are_held_against_their_own_block(outcome):
    keys = outcome.blocks["hidden"]
    small = {k: x * (0.05 if k in keys else 1) for k, x in outcome.V.items()}
    base = dataclasses.replace(outcome, V=small)
    other = {k: x * (1.003 if k in keys else 1) for k, x in small.items()}
    other = dataclasses.replace(base, V=other)
    found = base.compare_gradients("x", other, 1.0, "")
    assert results(found) == ["FAILED", "ok", "ok", "ok"]
