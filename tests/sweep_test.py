"""The batch-size study: search, trials, analysis; and the program."""

import dataclasses
import itertools
import json
import math
import multiprocessing
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from tools import batch_size_study, json_lines
from tools.quadratic import model as quadratic
from tools.quadratic import study as quadratic_study
from tools.sweep import (
    analysis,
    prediction,
    report,
    space,
    trials,
    workers,
)
from tools.sweep.store import Store, check, config
from tools.sweep.trials import DIVERGED, MISSED, REACHED, TUNING_SEED
from trainers import command_line, harness, mnist

DIGITS = ("--dataset=digits", "--model=small_cnn", "--validation", "--epochs=2")


def spaces(search="quasi"):
    return {
        name: {key: (r.low, r.high, r.scale) for key, r in ranges.items()}
        for name, ranges in space.SEARCHES[search].items()
    }


def study(names=("sgd",), batch_sizes=(64, 128, 256), **changed):
    values = {
        "trainer": "mnist",
        "flags": DIGITS,
        "arms": {name: (name, ()) for name in names},
        "batch_sizes": batch_sizes,
        "spaces": spaces(),
        "search": "quasi",
        "trials": 3,
        "seeds": (0, 1),
        "metric": "val_loss",
        "target": 0.5,
        "least_steps": 20,
    }
    return trials.Study(**{**values, **changed})


def record(index=0, status=REACHED, steps=10, seed=TUNING_SEED, last=0.5):
    return {
        "arm": "sgd",
        "batch_size": 64,
        "index": index,
        "settings": study().settings("sgd")[index],
        "seed": seed,
        "status": status,
        "steps": steps if status == REACHED else None,
        "curve": {
            "step": [10],
            "loss": [last],
            "accuracy": [0.1],
            "val_loss": [last],
            "val_accuracy": [0.9],
        },
        "seconds": 1.0,
    }


# What is tried.


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
            "'damping' is none of learning_rate",
        ),
        (
            {"momentum": {"learning_rate": [1, 2], "momentum": [0.5, 1.5]}},
            "momentum: momentum: it must be less than 1",
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


# Which comes next.


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


def test_store_refuses_another_study_and_takes_more_cells(tmp_path):
    store = Store(tmp_path, study())
    store.add(record())
    with pytest.raises(ValueError, match="another command runs it"):
        Store(tmp_path, study())
    del store
    more = study(("sgd", "kfac"), (32, 64, 128, 256), seeds=(0, 1, 2))
    assert Store(tmp_path, more).records == [record()]
    with pytest.raises(ValueError, match="another study, with target 0.5"):
        Store(tmp_path, dataclasses.replace(more, target=0.4))
    config = json.loads((tmp_path / "study.json").read_text())
    assert trials.Study.from_config(config).config() == more.config()


def test_a_line_cut_short_is_dropped(tmp_path):
    store = Store(tmp_path, study())
    store.add(record())
    del store
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"arm": "sg')
    file = tmp_path / "trials.jsonl"
    assert json_lines.read(file, check) == [record()]
    store = Store(tmp_path, study())
    store.add(record(1))
    assert json_lines.read(tmp_path / "trials.jsonl", check) == [
        record(),
        record(1),
    ]


SOUND = record()


@pytest.mark.parametrize(
    "line, reason",
    [
        ("3", "it is 3, not a dictionary"),
        ("null", "it is None, not a dictionary"),
        ("[" * 9999, "recursion"),
        (b"\xff\xfe\x00binary", "can't decode byte"),
        ({**SOUND, "steps": "x"}, "'steps'] is 'x', not a whole number or nul"),
        ({**SOUND, "steps": True}, "'steps'] is True, not"),
        ({**SOUND, "arm": 3}, "'arm'] is 3, not a string"),
        ({**SOUND, "seconds": None}, "'seconds' is None, not"),
        ({**SOUND, "settings": {"momentum": 0.5}}, "no 'learning_rate'"),
        ({**SOUND, "curve": {}}, "its curve is not whole"),
        ({**SOUND, "curve": {**SOUND["curve"], "loss": []}}, "not whole"),
        ({**SOUND, "status": "ended"}, "status 'ended' is none"),
        ({k: v for k, v in SOUND.items() if k != "curve"}, "it has no 'curve'"),
    ],
)
def test_a_line_that_is_no_trial_is_named(line, reason, tmp_path):
    """With the file and the mend; all other lines stay."""
    directory = tmp_path / "study"
    Store(directory, study()).add(SOUND)
    file = directory / "trials.jsonl"
    if not isinstance(line, bytes):
        line = (line if isinstance(line, str) else json.dumps(line)).encode()
    file.write_bytes(file.read_bytes() + line + b"\n")
    before = file.read_bytes()
    message = f"{file}: line 2 is damaged .*{reason}.*; remove it, and what"
    with pytest.raises(ValueError, match=message):
        Store(directory, study())
    with pytest.raises(SystemExit, match=f"--study_dir: {message}"):
        report.write(directory)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"arms": 3}, "'arms'] is 3, not a dictionary"),
        ({"arms": {"a": ["sgd"]}}, "of another length"),
        ({"arms": {"a": ["newton", []]}}, "no arm 'newton'"),
        ({"batch_sizes": 3}, "'batch_sizes'] is 3, not a list"),
        ({"target": "x"}, "'target'] is 'x', not a whole number or a number"),
    ],
)
def test_a_study_of_another_form_is_named(change, reason, tmp_path):
    file = tmp_path / "study.json"
    file.write_text(json.dumps({**study().config(), **change}))
    message = f"{file}: is no description of a study .*{reason}"
    with pytest.raises(ValueError, match=message):
        config(file)
    with pytest.raises(SystemExit, match=message):
        report.write(tmp_path)


# What they come to.


def test_scaling_is_recovered():
    sizes = [16, 32, 64, 128, 256, 1024]
    fit = analysis.scaling(sizes, [30 * (1 + 200 / b) for b in sizes])
    assert fit.least_steps == pytest.approx(30, rel=1e-3)
    assert fit.critical == pytest.approx(200, rel=1e-3)
    assert fit.error < 1e-4
    perfect = analysis.scaling(sizes, [4096 / b for b in sizes])
    assert perfect.critical > 1e6
    assert analysis.scaling(sizes, [7.0] * 6).critical < 1e-3


def test_perfect_up_to():
    assert analysis.perfect_up_to([16, 32, 64], [100, 50, 45]) == 32
    assert analysis.perfect_up_to([16, 64, 128], [100, 25, 13]) == 128


def test_stage_targets_by_hand():
    curve = {"step": [0, 40, 80, 100], "loss": [2.0, 1.0, 0.5, 0.4]}
    found = analysis.stage_targets(curve, "loss", [40, 80])
    assert found == pytest.approx([1.2, 0.6, 0.42])
    assert analysis.steps_to(curve, "loss", 0.6) == 80
    assert analysis.steps_to(curve, "loss", 0.3) is None


def test_results():
    done = [record(0, steps=12), record(1, DIVERGED), record(2, steps=9)]
    done += [record(2, seed=seed, steps=s) for seed, s in [(0, 8), (1, 11)]]
    (found,) = analysis.results(study(), done, train_size=640)
    assert found.steps == 9.5
    assert found.epochs == pytest.approx(0.95)
    assert found.failed(DIVERGED) == 1
    assert found.learning_rate == record(2)["settings"]["learning_rate"]
    assert analysis.speedup([found]) == {64: 1.0}


# Trials.


@pytest.mark.parametrize("label", ["kfac", "ema", "adam"])
def test_a_trial_is_the_trainers_run(label, tmp_path):
    """And one trace serves all; what ran before leaves nothing behind."""
    from tools.sweep.cell import Cell

    asked = study((label,), (128,), target=1e-9, seeds=(3,))
    made = Cell(asked, label, 128)
    first, second = asked.settings(label)[:2]
    task = trials.Task(0, first, TUNING_SEED)
    found = [made.train(t) for t in (task, trials.Task(1, second, 3), task)]
    assert found[0]["curve"] == found[2]["curve"] != found[1]["curve"]
    assert made._step.experimental_get_tracing_count() == 1

    keras.utils.clear_session(free_memory=False)
    optimizer, more = space.ARMS[label]
    given = {**first, "optimizer": optimizer, "batch_size": 128}
    argv = [*DIGITS, *more, "--verbose=0", "--keep_checkpoints=0"]
    argv += [f"--{key}={value}" for key, value in given.items()]
    argv += [f"--seed={TUNING_SEED}", "--evaluation_period=21"]
    argv += [f"--model_dir={tmp_path}/run"]
    run = command_line.parse(mnist.TRAINER, argv)
    _, _, log = harness.train(run, optimizer, run.model_dir)
    assert log[-1]["step"] == found[0]["curve"]["step"][-1] == 21
    for name in ("val_loss", "val_accuracy"):
        assert log[-1][name] == pytest.approx(
            found[0]["curve"][name][-1], rel=1e-3
        )


def test_schedules_follow_the_rate():
    from tools.sweep.cell import Cell

    flags = (*DIGITS, "--schedule=linear")
    asked = study(("sgd",), (256,), flags=flags, target=1e-9)
    made = Cell(asked, "sgd", 256)
    made._reset(trials.Task(0, {"learning_rate": 0.5}, 0))
    assert float(made.optimizer.learning_rate) == pytest.approx(0.5)
    made.optimizer._iterations.assign(10)
    total = made.run.steps.total
    expected = 0.5 * (1 - 10 / total)
    assert float(made.optimizer.learning_rate) == pytest.approx(expected)


# Processes.


def test_crashes_are_recorded_and_the_study_goes_on(tmp_path):
    """A process that is killed, and a trial that raises."""
    arms = {"sgd": ("sgd", ()), "broken": ("kfac", ())}
    wrong = {"learning_rate": (0.1, 1.0, "log"), "none": (0.1, 1.0, "log")}
    asked = study(
        trials=2, seeds=(0,), batch_sizes=(256,), arms=arms,
        spaces={**spaces(), "kfac": wrong},
    )  # fmt: skip
    store = Store(tmp_path, asked)
    lines = []

    def show(line):
        lines.append(line)
        if len(lines) == 1:
            for process in multiprocessing.active_children():
                process.kill()

    workers.Runner(asked, store, 1, show).run(stop_unreached=False)
    sgd = trials.of_cell(store.records, "sgd", 256)
    lost = [r for r in sgd if r["status"] == trials.CRASHED]
    assert all("the process ended with -9" in r["reason"] for r in lost)
    assert sum(r["status"] != trials.CRASHED for r in sgd) >= 2
    failed = trials.of_cell(store.records, "broken", 256)
    assert [r["index"] for r in failed] == [0, 1, 2, 3]
    assert all(r["reason"].startswith("KeyError: 'none'") for r in failed)
    keys = [(r["arm"], r["index"], r["seed"]) for r in store.records]
    assert len(set(keys)) == len(keys)


def test_unreachable_target_is_told_early(tmp_path):
    asked = study(trials=2, target=1e-6, arms={"sgd": ("sgd", ())})
    store = Store(tmp_path, asked)
    message = "none of 2 trials came to val_loss 1e-06: the best was"
    with pytest.raises(workers.UnreachedError, match=message):
        workers.Runner(asked, store, 1, lambda line: None).run()


def program(directory, *argv):
    return [
        *(sys.executable, "-m", "tools.batch_size_study"),
        *(f"--study_dir={directory}", "--batch_sizes=256,512"),
        *("--optimizers=momentum", "--trials=2", "--target_value=2.2"),
        *("--seeds=0", "--least_steps=20", *argv, "--", *DIGITS),
    ]


def test_an_interrupted_study_goes_on(tmp_path):
    directory = tmp_path / "study"
    begun = subprocess.Popen(
        program(directory), stdout=subprocess.PIPE, text=True
    )
    seen = list(itertools.islice(begun.stdout, 3))
    begun.kill()
    begun.wait()
    assert all("min left" in line for line in seen)
    before = (directory / "trials.jsonl").read_text()
    done = subprocess.run(program(directory), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = (directory / "trials.jsonl").read_text()
    assert after.startswith(before.rsplit("\n", 1)[0])
    records = json_lines.read(directory / "trials.jsonl", check)
    keys = [(r["arm"], r["batch_size"], r["index"], r["seed"]) for r in records]
    assert len(set(keys)) == len(keys)
    text = (directory / "report.md").read_text()
    assert len(re.findall(r"^\| momentum \| \d+ \| \d+ ", text, re.M)) >= 1
    for name in ("steps", "speedup", "curves", "learning_rate", "robustness"):
        assert (directory / f"{name}.png").stat().st_size > 5000


def synthetic(asked, label, batch_size, index, rate):
    """A trial whose loss falls as exp(-rate step) from 2."""
    steps = np.arange(1, 601)
    values = 2 * np.exp(-rate * steps)
    reached = int(np.argmax(values <= asked.target)) + 1
    return {
        "arm": label,
        "batch_size": batch_size,
        "index": index,
        "settings": asked.settings(label)[index],
        "seed": TUNING_SEED,
        "status": REACHED,
        "steps": reached,
        "curve": {
            "step": steps.tolist(),
            "loss": values.tolist(),
            "accuracy": (1 - values / 2).tolist(),
            "val_loss": values.tolist(),
            "val_accuracy": (1 - values / 2).tolist(),
        },
        "seconds": 1.0,
    }


def test_all_pictures_and_the_prediction(tmp_path, capsys):
    """The protocol of Ma: a grid, no stop, a rate that falls twice."""
    flags = (*DIGITS, "--schedule=steps")
    asked = study(
        ("momentum", "kfac"), flags=flags, search="grid", trials=2,
        spaces=spaces("grid"), stop=False,
    )  # fmt: skip
    store = Store(tmp_path, asked)
    for label, size in asked.cells():
        for index in range(4):
            rate = 0.01 * (1 + index) / (1 + 64 / size)
            found = synthetic(asked, label, size, index, rate)
            store.add(found)
        for seed in asked.seeds:
            store.add({**found, "seed": seed})
    direction = {"layer": "a", "curvature": 1.0, "variance": 0.5}
    directions = [
        {**direction, "rank": 1},
        {**direction, "rank": 100, "curvature": 0.01, "variance": 0.01},
    ]
    spectra = {"layers": [{"layer": "a", "positive": 100}]}
    file = tmp_path / "spectra.json"
    file.write_text(json.dumps({**spectra, "directions": directions}))
    report.write(tmp_path, file)
    text = (tmp_path / "report.md").read_text()
    names = (*report.figures.FIGURES, "prediction")
    assert all((tmp_path / f"{n}.png").stat().st_size > 5000 for n in names)
    fitted = re.search(r"\| momentum \| ([\d.]+) \| ([\d.]+) \|", text)
    assert float(fitted[2]) == pytest.approx(64, rel=0.3)
    assert "kfac, batch size 64: best at the border" in text
    assert (
        len(re.findall(r"^\| kfac \| \d+ \| \d+[.\d]* \| \d+ \|$", text, re.M))
        == 3
    )
    file.write_text("{}")
    with pytest.raises(SystemExit, match="is no spectra.json of tools.spectra"):
        report.write(tmp_path, file)


def test_prediction_of_a_known_spectrum():
    """With the spectrum 1/i whole, it is that of tools.noisy_quadratic."""
    ranks = np.unique(np.geomspace(1, 1000, 30).round())
    directions = [
        {"layer": "a", "rank": r, "curvature": 1 / r, "variance": 1 / r}
        for r in ranks
    ]
    spectra = {"directions": directions}
    spectra["layers"] = [{"layer": "a", "positive": 1000}]
    exact = quadratic.power_law(1000)
    loss = exact.initial_risk
    found = prediction.measured(spectra, loss)
    assert found.dimension == 1000
    assert found.initial_risk == pytest.approx(loss)
    for size in (4, 4096):
        ours, theirs = (
            quadratic_study.answer(
                quadratic_study.Question(model, "sgd", 0.0, size, 0.05)
            )["steps"]
            for model in (found, exact)
        )
        assert ours == pytest.approx(theirs, rel=0.05)
    # With little damping it is the power 1 of Zhang, but for the scale.
    near = prediction.preconditioned(exact, 1e-9)
    assert near.curvature == pytest.approx(exact.preconditioned(1.0).curvature)
    assert near.initial_risk == pytest.approx(loss)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--target_value=0"], "--target_value=0: val_loss is never that"),
        (
            ["--target_metric=val_accuracy", "--target_value=1.2"],
            "val_accuracy is never that; give one from 0 to 1",
        ),
        (["--batch_sizes="], "--batch_sizes=: give whole numbers from 1"),
        (["--batch_sizes=8,x"], "--batch_sizes=8,x: give whole"),
        (["--batch_sizes=100000"], "has 1,294 training examples"),
        (["--seeds=100"], "--seeds=100: .* not 100, the search's"),
        (["--optimizers=newton"], "'newton' is none of sgd"),
        (["--optimizers="], "--optimizers: is empty"),
        (["--arm=exact kfac"], "--arm=exact kfac: write 'label: optimizer"),
        (["--arm=exact: kfac --inverter=qr"], "inverter=qr"),
        (["--arm=a: kfac '--damping=1"], "--arm=a: kfac .*: No closing quot"),
        (["--arm=a: kfac \\"], "--arm=a: kfac .*: No escaped char"),
        (["--search=grid", "--trials=1"], "a grid of one point is empty"),
        (["--space=/nowhere.json"], "--space=/nowhere.json: .*No such file"),
    ],
)
def test_bad_input(argv, message, tmp_path, capsys):
    values = batch_size_study.flags.FLAGS
    saved = values.flag_values_dict()
    try:
        words = program(tmp_path / "study", *argv)[2:]
        rest = values(words)
        with pytest.raises(SystemExit, match=message):
            batch_size_study.main(rest)
    finally:
        values.unparse_flags()
        for name, value in saved.items():
            if name in batch_size_study.flags.FLAGS:
                values[name].value = value
        values.mark_as_parsed()
    assert not (tmp_path / "study").exists()


def test_report_of_nothing(tmp_path):
    with pytest.raises(SystemExit, match="holds no study"):
        report.write(tmp_path)
    Store(tmp_path, study())
    with pytest.raises(SystemExit, match="holds no trial yet"):
        report.write(tmp_path)


@pytest.mark.parametrize(
    "done",
    [
        [record(0, MISSED)],
        [record(0, MISSED), record(1, DIVERGED)],
        [trials.Task(0, {"learning_rate": 1.0}, TUNING_SEED).crashed("of it")],
    ],
)
def test_report_of_what_there_is(done, tmp_path, capsys):
    store = Store(tmp_path, study())
    for found in done:
        store.add({"arm": "sgd", "batch_size": 64, **found})
    report.write(tmp_path)
    assert "sgd, batch size 64: " in (tmp_path / "report.md").read_text()
    assert (tmp_path / "steps.png").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--gradient_accumulation_steps=2", "whose steps are updates"),
        (
            "--damping=1 --damping_target=0.1 --damping_warmup=5",
            "kfac: damping is tuned, so it can be no schedule",
        ),
    ],
)
def test_trials_that_would_be_others_are_refused(flags, message):
    asked = study(("kfac",), flags=(*DIGITS, *flags.split()))
    with pytest.raises(SystemExit, match=message):
        asked.run("kfac", 64)


def test_damping_of_normalization_follows():
    from tools.sweep.cell import Cell

    model = "--model=small_cnn_bn"
    flags = (*DIGITS, model, "--norm_damping_factor=0.1")
    made = Cell(study(("kfac",), flags=flags, seeds=()), "kfac", 256)
    settings = made.study.settings("kfac")[0]
    made._reset(trials.Task(0, settings, TUNING_SEED))
    values = made.optimizer.hyperparameters
    for name, expected in (("damping", 1.0), ("norm_damping", 0.1)):
        found = float(values[name].at(None, "float32"))
        assert found == pytest.approx(expected * settings["damping"], rel=1e-5)


def test_trials_that_failed_count_as_nothing_learned():
    done = [record(0, last=0.4), record(1, DIVERGED, last=0.1)]
    (found,) = analysis.results(study(), done, 640)
    assert analysis.accuracies_at(found, 100) == [0.0, 0.9]
    assert analysis.worst([found], "val_loss")["index"] == 0
    assert analysis.best_value(found, "val_loss") == 0.4
    assert math.isinf(trials.rank(study(), done[1])[0])
