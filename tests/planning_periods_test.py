"""Periods that meet a budget."""

import random

from planned_models import dense

import tfkfac
from tfkfac.planning.periods import Overheads


def test_suggested_periods_meet_the_budget():
    suggested = tfkfac.plan(dense(), batch_size=512, budget=0.1).suggested
    overhead = suggested.pop("overhead")
    assert 0.09 < overhead <= 0.1
    again = tfkfac.plan(dense(), batch_size=512, **suggested)
    assert again.overhead == overhead


def test_periods_for_a_budget():
    # 0.2 is left: 0.2 / 2 and 2 / 20.
    assert Overheads(0.05, 0.2, 2.0).suggest(0.25 + 1e-9) == (2, 20)
    # Inversions are the cheaper part: one period, (0.9 + 0.1) / 0.1.
    assert Overheads(0.0, 0.9, 0.1).suggest(0.1 + 1e-9) == (10, 10)
    assert Overheads(0.0, 0.0, 0.3).suggest(0.1 + 1e-9) == (1, 3)
    assert Overheads(0.0, 0.3, 0.1).suggest(0.5) == (1, 1)
    assert Overheads(0.1, 0.3, 0.1).suggest(0.1) is None
    rng = random.Random(0)
    for _ in range(200):
        plain, budget = rng.random() / 10, 0.1 + rng.random()
        parts = Overheads(plain, 3 * rng.random(), 9 * rng.random())
        p, q = parts.suggest(budget)
        assert parts.mean(p, q) <= budget * (1 + 1e-12) and q % p == 0
        # The budget is used: one p less for each factor update is too much.
        if p > 1 and q == p:
            assert parts.mean(p - 1, p - 1) > budget
