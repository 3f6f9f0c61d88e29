"""What runs come to, on records worked out by hand."""

import dataclasses
import math

import pytest
from timed_runs import PEERS, record

from tools.time_to_target import studies, summaries, tables


def test_medians_count_a_missed_target_as_infinite():
    found = tables.medians(
        record("adam", s, *of_seed)
        for s, of_seed in enumerate([(10, 1.0), (None, None), (30, 2.0)])
    )
    assert (found["steps"], found["seconds"], found["reached"]) == (30, 2.0, 2)
    assert found["later_step_seconds"] == 0.5  # (3 s - 1 s) / 4 steps
    missed = [record("adam", s) for s in (0, 1)]
    missed.append(record("adam", 2, 10, 1.0))
    assert math.isinf(tables.medians(missed)["steps"])


def test_ratios_are_to_the_best_peer_of_each_task():
    tuned = studies.STUDIES["peers"].arms["kfac_tuned"].settings[0]
    rate = {"learning_rate": 1e-3, "schedule": "constant"}
    records = [
        record(name, seed, steps, seconds, arguments=arguments)
        for seed in (*studies.SEEDS, studies.TUNING_SEED)
        for name, steps, seconds, arguments in (
            ("kfac", 10, 4.0, {}),
            ("kfac", 1, 0.1, tuned),  # No peer.
            ("adam", 40, 5.0, rate),
            ("muon", 20, 8.0, rate),
        )
    ]
    # Another setting of the search, worse; another question.
    other = {"learning_rate": 1e-2, "schedule": "constant"}
    records.append(
        record("adam", studies.TUNING_SEED, 50, 6.0, arguments=other)
    )
    records.append(record("adam", 0, 1, 0.1, arguments=other))
    records.append(record("kfac", 1, 1, 0.1, after=30))
    table = tables.rows(PEERS, records)
    assert summaries.ratios(PEERS, table, "steps") == {"digits_cnn": 0.5}
    assert summaries.ratios(PEERS, table, "seconds") == {"digits_cnn": 0.8}
    lines = summaries.SUMMARIES["peers"](PEERS, table, records)
    assert "0.80 in the geometric mean, ahead on 1" in lines[-1]
    text = tables.markdown(PEERS, table).splitlines()
    assert "| digits_cnn | kfac | 10 | 4.0 |" in text[2]
    assert len({line.count(" | ") for line in text}) == 1 and len(text) == 6


def test_geometric_mean():
    assert summaries.geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)
    assert summaries.geometric_mean([0.5, math.inf]) == math.inf
    assert math.isnan(summaries.geometric_mean([]))


def test_robustness_counts_settings_within_twice_the_steps():
    study = dataclasses.replace(
        studies.STUDIES["robustness"], tasks=("digits_cnn", "gru"), stay=True
    )
    taken = {"digits_cnn": (20, 40, 41), "gru": (30, 10, None)}
    names = ("kfac", "kfac damping /3", "kfac damping x3")
    records = [
        record(
            "kfac",
            0,
            steps,
            1.0,
            task=task,
            arguments=study.arms[name].settings[0],
            stay=True,
            worst_after=0.03,
        )
        for task, of_task in taken.items()
        for name, steps in zip(names, of_task)
    ]
    table = tables.rows(study, records)
    assert tables.worst("digits_cnn", table["digits_cnn"]["kfac"]) == 1.5
    assert "| 1.50 |" in tables.markdown(study, table)
    (line,) = summaries.SUMMARIES["robustness"](study, table, records)
    assert "2 of 4 runs; 1 of 2 settings are on every task" in line
    missed = [f"kfac damping x3 on {task}" for task in taken]
    assert line.endswith("; not " + ", ".join(missed))


def test_invariance_compares_steps_with_those_in_other_units():
    study = studies.STUDIES["invariance"]
    records = [
        record("kfac", seed, steps, 1.0, task=task)
        for seed in study.seeds
        for task, steps in (
            ("diabetes", 40),
            ("diabetes_in_units", 50),
            ("diabetes_scaled", 80),
        )
    ]
    table = tables.rows(study, records)
    lines = summaries.SUMMARIES["invariance"](study, table, records)
    assert lines == [
        "diabetes, kfac: 40 steps, in other units 50, ratio 1.25",
        "diabetes, kfac: 40 steps, in other units, weights drawn as before 80, "
        "ratio 2.00",
    ]


def test_defaults_are_ordered_by_the_mean_of_their_ranks():
    study = dataclasses.replace(
        studies.STUDIES["defaults"], tasks=("digits_cnn", "pydocs")
    )
    settings = study.arms["kfac"].settings[:3]
    losses = {"digits_cnn": (0.1, 0.2, math.nan), "pydocs": (5.0, 3.0, 4.0)}
    records = [
        record(
            "kfac",
            studies.TUNING_SEED,
            task=task,
            after=study.after(task),
            arguments=arguments,
            curve=[[5, loss, 1.0]],
            **({"failure": "diverged"} if math.isnan(loss) else {}),
        )
        for task, of_task in losses.items()
        for arguments, loss in zip(settings, of_task)
    ]
    lines = summaries.SUMMARIES["defaults"](study, {}, records)
    assert lines[0].startswith("mean 0.25, worst 0.50: learning_rate 0.03")
    assert lines[1] == "mean 0.50, worst 1.00: as it comes"
    assert lines[2].startswith("mean 0.75, worst 1.00")
