"""Spaces of a study, and which trial of them comes next."""

import numpy as np
import pytest
from sweeps import record, study

from tools.sweep import curves, space, trials
from tools.sweep.trials import DIVERGED, MISSED, REACHED, TUNING_SEED


@pytest.mark.parametrize(
    "bounds, middle",
    [
        (space.Range(1.0, 3.0, "linear"), 2.0),
        (space.Range(0.01, 1.0), 0.1),
        (space.Range(0.9, 0.999, "complement"), 0.99),
    ],
)
def test_ranges(bounds, middle):
    assert bounds.at(0.5) == pytest.approx(middle)
    assert bounds.place(middle) == pytest.approx(0.5)
    assert bounds.at(0) == pytest.approx(bounds.low)
    assert bounds.at(1) == pytest.approx(bounds.high)


def test_the_grid_of_ma():
    found = space.grid(space.GRID["kfac"], 8)
    assert len(found) == 64
    rates = sorted({s["learning_rate"] for s in found})
    assert rates == pytest.approx([1e-3 * 3**i for i in range(8)])
    damping = sorted({s["damping"] for s in found})
    assert damping == pytest.approx([1e-4 * 3**i for i in range(8)])


def test_quasi_random_points_go_on_and_fill_the_space():
    ranges = space.QUASI_RANDOM["kfac"]
    few, many = (space.quasi_random(ranges, count) for count in (5, 64))
    assert many[:5] == few
    for name, bounds in ranges.items():
        places = sorted(bounds.place(s[name]) for s in many)
        assert np.abs(places - np.linspace(0, 1, 64)).max() < 0.1


def test_border():
    ranges = space.QUASI_RANDOM["momentum"]
    inner = {"learning_rate": 0.03, "momentum": 0.9}
    assert space.at_border(ranges, inner) == []
    outer = {"learning_rate": 0.99, "momentum": 0.31}
    assert space.at_border(ranges, outer) == ["learning_rate", "momentum"]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"newton": {}}, "'newton' is none of sgd"),
        ([1], "write {optimizer"),
        ({"sgd": {}}, "sgd: write {'learning_rate'"),
        ({"sgd": [0.1, 1]}, "sgd: write {'learning_rate'"),
        ({"kfac": {"damping": [0.1, 1]}}, "kfac: write {'learning_rate'"),
        (
            {"sgd": {"learning_rate": [1, 2], "damping": [1, 2]}},
            "'damping' is none of decay_end, decay_to, learning_rate",
        ),
        (
            {"momentum": {"learning_rate": [1, 2], "momentum": [0.5, 1.5]}},
            "momentum: momentum: it must be less than 1",
        ),
        (
            {"sgd": {"learning_rate": [1, 2], "decay_to": [0.1, 2]}},
            "sgd: decay_to: it must be 1 at most",
        ),
        ({"sgd": {"learning_rate": [1, float("inf")]}}, "is no range"),
        (
            {"sgd": {"learning_rate": [2, 1]}},
            "from 2 to 1 is no range on a log",
        ),
        ({"sgd": {"learning_rate": [1]}}, "sgd: learning_rate: .*high"),
        ({"sgd": {"learning_rate": [1, 2, "cubic"]}}, "'cubic' must be"),
    ],
)
def test_bad_space(given, message):
    with pytest.raises(ValueError, match=message):
        space.read(given, space.QUASI_RANDOM)


def test_search_goes_on_until_enough_did_not_diverge():
    asked, done = study(), []
    states = [REACHED, DIVERGED, MISSED, REACHED]
    for index, status in enumerate(states):
        task = trials.following(asked, "sgd", done)
        assert (task.index, task.seed) == (index, TUNING_SEED)
        done.append(record(index, status, steps=20 - index))
    for seed in (0, 1):
        task = trials.following(asked, "sgd", done)
        assert (task.index, task.seed) == (3, seed)  # The fewest steps.
        assert trials.left(asked, "sgd", done) == 2 - seed
        done.append(record(3, seed=seed))
    assert trials.following(asked, "sgd", done) is None
    assert trials.left(asked, "sgd", done) == 0


def test_search_ends_where_all_diverge():
    done = [record(i, DIVERGED) for i in range(2 * study().trials)]
    assert trials.following(study(), "sgd", done) is None
    assert trials.best(study(), done) is None


def test_best_without_a_stop_needs_no_target():
    done = [record(i, MISSED, last=loss) for i, loss in enumerate([3, 1, 2])]
    assert trials.following(study(), "sgd", done) is None
    assert trials.following(study(stop=False), "sgd", done).index == 1


def test_all_optimizers_get_as_many_draws():
    """A trial that was drawn for one that did not fail does not count."""
    states = [REACHED, MISSED, DIVERGED, REACHED, REACHED]
    done = [record(i, s, steps=20 - i) for i, s in enumerate(states)]
    done += [record(3, seed=0)]
    counted = trials.counted(study(), done[::-1])
    assert [r["index"] for r in counted] == [0, 1, 2, 3]  # Three are sound.
    assert trials.best(study(), done)["index"] == 3  # Not 4, with 16 steps.
    assert len(trials.counted(study(search="grid"), done)) == 5


def test_best_is_the_best_achieved_not_the_last():
    """Ma et al. 2019, appendix A: maximal accuracy, minimal loss."""
    found = record(0, MISSED)
    found["curve"] = {"val_accuracy": [0.5, 0.9, 0.7], "loss": [2, 0.3, 0.4]}
    assert curves.best_value(found["curve"], "val_accuracy") == 0.9
    assert curves.best_value(found["curve"], "loss") == 0.3
    asked = study(metric="val_accuracy", target=0.95, stop=False)
    assert trials.rank(asked, found)[1] == -0.9
