"""The benchmark in seconds: its rules, on records worked out by hand."""

import dataclasses
import inspect
import json
import math
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfkfac
from tools.time_to_target import (
    data,
    optimizers,
    report,
    runs,
    studies,
    summaries,
    tables,
    tasks,
    training,
)
from tools.time_to_target.studies import Arm, Study

PEERS = dataclasses.replace(studies.STUDIES["peers"], tasks=("digits_cnn",))


def record(optimizer, seed, steps=None, seconds=None, **more):
    return {
        "task": "digits_cnn",
        "optimizer": optimizer,
        "arguments": {},
        "seed": seed,
        "after": None,
        "limit": None,
        "stay": False,
        "steps": steps,
        "seconds": seconds,
        "processor_seconds": seconds and 2 * seconds,
        "first_step_seconds": 1.0,
        "peak_mib": 100.0,
        "state_mib": 1.0,
        "worst_after": None,
        "curve": [[5, 0.5, 3.0]],
        **more,
    }


# Studies.


def test_each_peer_has_sixteen_settings_and_kfac_as_it_comes_one():
    arms = studies.STUDIES["peers"].arms
    assert arms["kfac"].settings == ({},)
    counts = {n: len(arm.settings) for n, arm in arms.items() if n != "kfac"}
    assert set(counts.values()) == {16}
    assert optimizers.PEERS.keys() == arms.keys() - {"kfac", "kfac_tuned"}
    adam = studies.STUDIES["after_steps"].arms["adam"]
    assert len(adam.settings) == 12


@pytest.mark.parametrize("name", studies.STUDIES)
def test_studies_name_what_there_is(name):
    """Every argument is one of the optimizer's, every task one of `TASKS`."""
    study = studies.STUDIES[name]
    assert set(study.tasks) <= tasks.TASKS.keys() and study.tasks
    assert study.steps is None or set(study.tasks) <= study.steps.keys()
    for arm in study.arms.values():
        assert arm.beside is None or len(study.arms[arm.beside].settings) == 1
        keys = {key for setting in arm.settings for key in setting}
        makers = {"kfac": tfkfac.KFAC, **optimizers.PEERS}
        own = {"only", "growing", "late"}
        own = own if arm.optimizer == "kfac" else {"schedule"}
        maker = inspect.signature(makers[arm.optimizer])
        assert keys <= maker.parameters.keys() | own
    assert summaries.SUMMARIES.keys() <= studies.STUDIES.keys()


@pytest.mark.parametrize("optimizer", studies.DEFAULTS)
def test_defaults_are_those_of_the_constructors(optimizer):
    maker = {"kfac": tfkfac.KFAC, "adam": keras.optimizers.Adam}[optimizer]
    arguments = inspect.signature(maker).parameters
    for name, value in studies.DEFAULTS[optimizer].items():
        default = arguments[name].default
        assert default == value or isinstance(default, str), name
        arms = studies.STUDIES["robustness"].arms
        less, more = (
            arms[f"{optimizer} {name} {sign}"].settings[0][name]
            for sign in ("/3", "x3")
        )
        if 0.5 < value < 1:  # Of an average: the steps that it is over.
            less, value, more = (1 / (1 - x) for x in (less, value, more))
            assert less == pytest.approx(value / 3, rel=1e-4)
            assert more == pytest.approx(3 * value, rel=2e-3)
        else:
            assert less == pytest.approx(value / 3, rel=1e-4)
            assert more == pytest.approx(
                5 / 6 if name == "momentum" else 3 * value, rel=1e-4
            )


# What they come to.


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


# Which runs there are.


def quiet(directory):
    return runs.Runs(directory, show=lambda line: None)


def answers(monkeypatch, steps_of):
    """Has `steps_of(run)` answer in place of processes; returns what is
    asked."""
    asked = []

    def train(run):
        asked.append(run)
        steps, limit = steps_of(run), run["limit"]
        if steps and limit and steps > limit:
            steps = None
        return {**record("", 0, steps, steps and float(steps)), **run}

    monkeypatch.setattr(runs, "_train", train)
    return asked


def test_runs_go_on_from_the_file(tmp_path, monkeypatch):
    """A search gives settings up at the best steps so far."""
    steps = {2e-3: 40, 1e-2: 20}

    def steps_of(run):
        return steps.get(run["arguments"].get("learning_rate"))

    asked = answers(monkeypatch, steps_of)
    arms = {name: PEERS.arms[name] for name in ("kfac", "adam")}
    study = dataclasses.replace(PEERS, arms=arms)
    quiet(tmp_path).measure(study)
    assert len(asked) == 16 + 2 * len(study.seeds)
    assert [r["limit"] for r in asked[:16]] == [None] * 5 + [40] * 6 + [20] * 5
    best = {"learning_rate": 1e-2, "schedule": "constant"}
    turns = [(r["seed"], r["optimizer"]) for r in asked[16:]]
    assert turns == [(s, n) for s in study.seeds for n in ("kfac", "adam")]
    assert all(
        r["arguments"] == best for r in asked[16:] if r["optimizer"] == "adam"
    )
    quiet(tmp_path).measure(study)
    assert len(asked) == 16 + 2 * len(study.seeds)
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 22
    # What was not told yet is run again: the steps after the target.
    again = quiet(tmp_path)
    again.measure(dataclasses.replace(study, stay=True))
    assert len(asked) == 16 + 4 * len(study.seeds)
    assert len(again.records) == 22
    with pytest.raises(ValueError, match="another command runs it"):
        quiet(tmp_path)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"curve": [[5, 0.5]]}, "of another length"),
        ({"stay": None}, "'stay'] is None, not true or false"),
        ({"steps": "x"}, "'steps'] is 'x', not a whole number from 1 on or nu"),
        ({"steps": 9}, "its steps are 9, and its seconds are None"),
        ({"seconds": 9.0}, "its steps are None, and its seconds are 9"),
        ({"task": "gone"}, "'task'] is 'gone', not one of "),
        ({"optimizer": "newton"}, "'newton', not one of adam, adamw, kfac,"),
        ({"seed": -1}, "'seed'] is -1, not a whole number from 0 on"),
        ({"first_step_seconds": None}, "and no seconds of the first step"),
        ({"first_step_seconds": math.nan}, "is nan, not a finite number"),
        ({"curve": []}, "its curve is empty, and it has no failure"),
        ({"curve": [[0, 0.5, 1.0]]}, "0, not a whole number from 1 on"),
        ({"curve": [[5, 0.5, 1.0]] * 2}, "of its curve are not in order"),
        ({"failure": 3}, "'failure' is 3, not a string"),
    ],
)
def test_a_line_that_is_no_run_is_named(change, reason, tmp_path):
    file = tmp_path / "runs.jsonl"
    file.write_text(json.dumps({**record("adam", 0), **change}) + "\n")
    with pytest.raises(ValueError, match=f"{file}: line 1 .*{reason}"):
        quiet(tmp_path)


def test_a_run_that_diverged_is_sound():
    """Its losses may be NaN and infinite, and its curve empty."""
    runs.check(record("adam", 0, curve=[], failure="diverged"))
    curve = [[5, math.inf, 1.0], [10, math.nan, 2.0]]
    runs.check(record("adam", 0, curve=curve, worst_after=math.inf))


def test_settings_are_given_up_at_twice_the_best_of_the_peers_before(
    tmp_path, monkeypatch
):
    """K-FAC's steps are no measure of peers."""
    of_arms = {"kfac": 10, "adam": 30, "muon": 80}
    asked = answers(monkeypatch, lambda run: of_arms[run["optimizer"]])
    two = {"learning_rate": 1.0}, {"learning_rate": 2.0}
    arms = {name: Arm(name, two) for name in of_arms}
    study = Study(("digits_cnn",), arms, seeds=())
    quiet(tmp_path).measure(study)
    limits = [r["limit"] for r in asked]
    assert limits == [None, 10, None, 30, 60, 60]


def test_runs_beside_an_arm_have_twice_its_steps(tmp_path, monkeypatch):
    asked = answers(monkeypatch, lambda run: 30 if not run["arguments"] else 61)
    setting = {"damping": 0.1}
    arms = {"kfac": Arm("kfac"), "more": Arm("kfac", (setting,), "kfac")}
    study = Study(("digits_cnn",), arms, seeds=(0,))
    made = quiet(tmp_path)
    made.measure(study)
    assert [r["limit"] for r in asked] == [None, 60]
    # With a longer limit it has to be run again, with a shorter one not.
    arms = {"more": Arm("kfac", (setting,))}
    made.measure(dataclasses.replace(study, arms=arms))
    assert [r["limit"] for r in asked] == [None, 60, None]
    made.measure(study)
    assert len(asked) == 3 and len(made.records) == 2


def test_loss_after_steps_is_a_question_of_its_own(tmp_path, monkeypatch):
    asked = answers(monkeypatch, lambda run: None)
    study = Study(("gru",), {"kfac": Arm("kfac")}, {"gru": 7}, seeds=(0,))
    made = quiet(tmp_path)
    made.measure(study)
    made.measure(dataclasses.replace(study, steps=None))
    assert [r["after"] for r in asked] == [7, None]
    table = tables.rows(study, made.records)
    assert "| gru | kfac | 0.5 | 3.0 | 1.0 | 500 | 1.0 |" in tables.markdown(
        study, table
    )


# One run.


def tiny(monkeypatch, target, validation_target=None):
    x = np.linspace(-1, 1, 64, dtype="float32")[:, np.newaxis]
    task = tasks.Task(
        lambda: data.Data(x, 2 * x, x, 2 * x),
        lambda: keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]),
        "mse",
        batch_size=16,
        steps=40,
        every=2,
        target=target,
        validation_target=validation_target,
    )
    monkeypatch.setitem(tasks.TASKS, "tiny", task)


@pytest.mark.parametrize("optimizer", ["kfac", "adam"])
def test_run_ends_at_the_target(optimizer, monkeypatch):
    tiny(monkeypatch, target=0.05, validation_target=0.05)
    arguments = {} if optimizer == "kfac" else {"learning_rate": 0.3}
    found = training.train("tiny", optimizer, arguments, seed=0)
    last = found["curve"][-1]
    assert found["steps"] % 2 == 0 and found["steps"] < 40
    assert dict((s, v) for s, v, _ in found["curve"])[found["steps"]] <= 0.05
    assert last[0] == max(found["steps"], found["validation_steps"])
    assert 0 < found["first_step_seconds"] < found["seconds"]
    if optimizer == "adam":  # Two moments of two weights, a rate, a count.
        assert found["state_mib"] * 2**20 == 2 * 2 * 4 + 4 + 8
    json.dumps(found)


def test_run_that_stays_goes_on_over_as_many_steps_again(monkeypatch):
    tiny(monkeypatch, target=1e-5)
    found = training.train("tiny", "kfac", {}, seed=0, stay=True)
    assert found["curve"][-1][0] == 2 * found["steps"] > 40
    after = [v for s, v, _ in found["curve"] if s > found["steps"]]
    assert found["worst_after"] == max(after)


def test_loss_that_is_not_finite_after_the_target_is_the_worst(monkeypatch):
    tiny(monkeypatch, target=1.0)
    clock = training.Clock(tasks.TASKS["tiny"], 40, True, None)
    clock.set_model(keras.Sequential())
    clock.on_train_begin()
    clock.start()
    for epoch, loss in enumerate((2.0, 0.5, 0.7, math.nan)):
        clock.on_epoch_end(epoch, {"loss": loss})
    assert clock.record["steps"] == 4
    assert clock.record["worst_after"] == math.inf and clock.model.stop_training


def test_peak_is_that_of_the_training_alone():
    training._forget_peak()
    before = training._peak()
    held = np.ones(64 * 2**17)  # 64 MiB
    assert training._peak() > before + 60
    del held
    training._forget_peak()
    assert training._peak() < before + 30


def test_run_that_diverges_or_is_given_up(monkeypatch):
    tiny(monkeypatch, target=1e-9)
    found = training.train("tiny", "momentum", {"learning_rate": 1e20}, seed=0)
    assert found["failure"] == "diverged" and found["steps"] is None
    found = training.train("tiny", "adam", {"learning_rate": 1e-5}, 0, limit=6)
    assert found["curve"][-1][0] == 6 and found["steps"] is None
    found = training.train("tiny", "adam", {"learning_rate": 1e-5}, 0, limit=50)
    assert found["curve"][-1][0] == 50  # Twice the steps of another, say.


def test_run_of_so_many_steps_passes_the_target(monkeypatch):
    """Its schedule ends with it."""
    tiny(monkeypatch, target=10.0, validation_target=10.0)
    arguments = {"learning_rate": 0.1, "schedule": "cosine"}
    found = training.train("tiny", "adam", arguments, seed=0, after=20)
    assert found["curve"][-1][0] == 20
    assert found["steps"] is found["validation_steps"] is None
    made = optimizers.make("adam", arguments, 20, None)
    assert float(made._learning_rate(20)) == 0.0
    assert "schedule" in arguments


def test_kfac_of_some_layers_and_with_growing_periods():
    layers = [keras.layers.Dense(2, name=name) for name in ("one", "other")]
    model = keras.Sequential([keras.Input((3,)), *layers])
    made = optimizers.make("kfac", {"only": ["one"], "growing": 2}, 9, model)
    assert made.skip == ("other",) and made.fallback == "gradient"
    config = made.get_config()
    for name in ("factor_update_period", "inverse_update_period"):
        assert config[name]["class_name"] == "GrowingInterval"


def test_the_diagonal_curvature_goes_with_equation_21():
    """Osawa et al. 2019, 5.4: 1 for 13 epochs of 11.2 updates, then 20."""
    arms = studies.STUDIES["stale"].arms
    (settings,) = arms["late rule, diagonal"].settings
    assert settings["norm_curvature"] == "diagonal"
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    made = optimizers.make("kfac", settings, 250, model)
    for period in made.periods.values():
        found = [int(period._schedule(t)) for t in (0, 145, 146, 249)]
        assert found == [1, 1, 20, 20]  # 13 * 1437 / 128 = 145.9.


# Data and the command line.


def test_data_that_comes_with_packages():
    for name in ("digits_cnn", "text", "diabetes", "breast_cancer", "unet"):
        task = tasks.TASKS[name]
        found = task.data()
        assert len(found.x) == len(found.y) > len(found.x_validation) > 0
        assert np.isfinite(found.x).all()
    assert data.diabetes().x.std() > 50  # In their own units.
    assert 0.4 < data.sources().y.mean() < 0.6
    assert set(tasks.KEPT) < set(tasks.BENCHMARK) < tasks.TASKS.keys()


def test_components_of_images_are_uncorrelated_and_of_deviation_one(
    monkeypatch,
):
    rng = np.random.default_rng(0)
    spread = np.r_[9.0, 7.0, 5.0, np.ones(13)]  # Of the axes of the images.
    images = (spread * rng.normal(size=(4000, 16))).reshape(-1, 4, 4, 1)
    given = data.Data(images[500:], None, images[:500], None)
    monkeypatch.setattr(data, "mnist", lambda: given)
    found = data.mnist_components.__wrapped__(3)
    assert np.cov(found.x.T) == pytest.approx(np.eye(3), abs=1e-2)
    assert found.x_validation.std(0) == pytest.approx(1, abs=0.1)
    axes = given.x.reshape(-1, 16)[:, :3] / spread[:3]
    alike = np.abs(np.corrcoef(found.x.T, axes.T)[:3, 3:])
    assert alike == pytest.approx(np.eye(3), abs=0.1)
    assert found.y is given.x and found.y_validation is given.x_validation


def test_inputs_in_other_units_are_the_same_but_for_units():
    plain = data.breast_cancer()
    found = tasks.TASKS["breast_cancer_scaled"].data()
    assert found.y is plain.y and found.x.dtype == np.float32
    deviations = found.x.std(0) / plain.x.std(0)
    powers = np.log10(deviations)
    assert powers == pytest.approx(np.round(powers), abs=1e-3)
    assert {-2, 2} <= set(np.round(powers).astype(int))
    shifts = found.x.mean(0) / deviations - plain.x.mean(0)
    assert np.abs(shifts) == pytest.approx(3 * plain.x.std(0), rel=1e-3)
    back = found.x_validation / deviations - shifts
    assert back == pytest.approx(plain.x_validation, abs=1e-3)


def test_in_other_units_a_model_is_the_same_function():
    keras.utils.set_random_seed(0)
    plain = tasks.TASKS["breast_cancer"].model()
    keras.utils.set_random_seed(0)
    other = tasks.TASKS["breast_cancer_in_units"].model()
    expected = plain.predict(data.breast_cancer().x, verbose=0)
    x = tasks.TASKS["breast_cancer_in_units"].data().x
    found = other.predict(x, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert np.std(expected) > 0.1


def test_generator_makes_images():
    model = tasks.TASKS["generator"].model()
    assert model.output_shape == (None, 28, 28, 1)


def test_a_part_of_a_study():
    found = studies.part("tied", optimizers=["adam"], steps=4, seeds=["5"])
    assert list(found.arms) == ["adam"] and found.seeds == (5,)
    assert found.after("pydocs") == 4
    found = studies.part("peers", tasks=["digits_cnn_512"], stay=True)
    assert found.tasks == ("digits_cnn_512",) and found.stay
    assert found.arms == studies.STUDIES["peers"].arms


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("peers", {"tasks": ["mnist"]}, "tasks: mnist is none of"),
        ("tied", {"tasks": ["gru"]}, "tasks: gru is none of pydocs"),
        ("peers", {"optimizers": ["sgd"]}, "sgd is none of kfac, kfac_tuned"),
        ("peers", {"optimizers": []}, "nothing is none of"),
        (
            "robustness",
            {"optimizers": ["kfac damping x3"]},
            "is measured by kfac",
        ),
        ("peers", {"steps": 5}, "steps: peers runs to targets"),
        ("tied", {"stay": True}, "stay: tied has no targets"),
        ("peers", {"seeds": ["0", "100"]}, "100 is that of the search"),
        ("peers", {"seeds": ["-1"]}, "seeds=-1: give whole numbers"),
    ],
)
def test_what_there_is_not_is_named(name, given, message):
    with pytest.raises(ValueError, match=message):
        studies.part(name, **given)


def test_command_line(tmp_path):
    """Flags that are wrong, and a report of no run, end with a sentence."""

    def end(*given):
        run = subprocess.run(
            [sys.executable, "-m", "tools.time_to_target", *given],
            capture_output=True,
            text=True,
            cwd=pathlib.Path(__file__).resolve().parent.parent,
        )
        assert run.returncode != 0
        return run.stdout + run.stderr

    assert "--stay: tied has no targets" in end("--study=tied", "--stay")
    found = end(f"--output_dir={tmp_path}", "--report_only")
    assert f"{tmp_path}: there is no run of peers yet" in found


def test_a_study_leaves_a_table_and_pictures(tmp_path, monkeypatch):
    records = [
        record("kfac", 0, 10, 4.0),
        record("kfac", 0, 20, 4.0),  # The last one counts.
    ]
    text = report.write("peers", PEERS, records, tmp_path)
    assert (
        "| kfac | 20 |" in text
        and text + "\n" == (tmp_path / "peers.md").read_text()
    )
    for name in ("peers_curves.png", "peers_profile.png"):
        assert (tmp_path / name).stat().st_size > 5000
    other = studies.STUDIES["tied"]
    assert report.write("tied", other, records, tmp_path) == ""
    assert not (tmp_path / "tied.md").exists()

    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(SystemExit, match="peers.md cannot be written"):
        report.write("peers", PEERS, records[:1], tmp_path)
    assert "| kfac | 20 |" in (tmp_path / "peers.md").read_text()
