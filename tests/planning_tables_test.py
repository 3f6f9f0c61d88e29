"""A plan as text, of numbers given here."""

import dataclasses

from tfkfac.planning import tables
from tfkfac.planning.records import LayerPlan, Plan, RankPlan, StepPlan

MIB = 2**20
SENT = {"plain": MIB, "factors": 2 * MIB, "factors and inverses": 3 * MIB}


def plan(**changes):
    """The plan of a model of one layer, on two ranks."""
    layer = LayerPlan(
        "body/dense", "DenseBlock", "6, 4", 1234, 1, 3 * MIB, MIB // 2,
        2_500_000_000, 10**9, 12_345_000, 0,
    )  # fmt: skip
    ranks = [RankPlan(i, 0, MIB, 10**9, 0, SENT) for i in range(2)]
    steps = [StepPlan("gradient", 5 * 10**9, 0.0)]
    steps += [StepPlan(k, 6 * 10**9, 0.25, s, 2 * s) for k, s in SENT.items()]
    settings = {"batch_size": 8, "ranks": 2, "strategy": "owner",
                "factor_update_period": 2, "inverse_update_period": 10,
                "budget": None}  # fmt: skip
    found = Plan(
        model="small", settings=settings, parameters=1234, dense_bytes=MIB,
        packed_bytes=MIB // 2, momentum_bytes=MIB, layers=[layer], ranks=ranks,
        steps=steps, sampled_flops=0, overhead=0.125, suggested=None,
        uncounted=[],
    )  # fmt: skip
    return dataclasses.replace(found, **changes)


def test_columns():
    """Names to the left, numbers to the right, without spaces at the end."""
    rows = [["name", "n"], ["a", "10,000"], ["longer", "1"]]
    assert tables.table(rows).splitlines() == [
        "name         n",
        "------  ------",
        "a       10,000",
        "longer       1",
    ]
    left = tables.table(rows, left=2).splitlines()
    assert left[0] == "name    n" and left[-1] == "longer  1"


def test_a_layer_is_a_line():
    (line,) = [x for x in str(plan()).splitlines() if "body/dense" in x]
    assert line.split() == ["body/dense", "DenseBlock", "6,", "4", "1,234",
                            "3.00", "0.5", "1", "2.50", "1.00", "0.012",
                            "0.00"]  # fmt: skip


def test_ranks_are_shown_where_there_are_several():
    assert "sent, MiB: plain" in str(plan())
    alone = str(plan(ranks=plan().ranks[:1]))
    assert "sent, MiB: plain" not in alone
    lines = [x.split() for x in alone.splitlines()]
    assert ["plain", "6.00", "0.250", "1.00", "2.00"] in lines


def test_what_follows():
    text = str(plan())
    assert "small: 1,234 parameters, batch of 8 on each of 2 rank(s)" in text
    assert "in every 2 and inverses in every 10 updates: 0.125 of" in text
    assert "budget" not in text and "Not counted" not in text
    budget = {**plan().settings, "budget": 0.2}
    found = {"factor_update_period": 3, "inverse_update_period": 9,
             "overhead": 0.19}  # fmt: skip
    text = str(plan(settings=budget, suggested=found))
    assert "factor_update_period=3, inverse_update_period=9, " in text
    text = str(plan(settings=budget, uncounted=["while", "cond"]))
    assert "No periods meet a budget of 0.2: " in text and "0.250" in text
    assert text.endswith("Not counted: while, cond.")
