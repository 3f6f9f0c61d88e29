"""Trials of a study in processes of their own; the program."""

import itertools
import json
import multiprocessing
import re
import subprocess

import keras
import pytest
from sweeps import DIGITS, program, spaces, study

from tools import batch_size_study
from tools.sweep import space, trials, workers
from tools.sweep.store import Store
from tools.sweep.trials import TUNING_SEED
from trainers import command_line, mnist, train


@pytest.mark.parametrize("label", ["kfac", "ema", "adam"])
def test_a_trial_is_the_trainers_run(label, tmp_path):
    """And one trace serves all; what ran before leaves nothing behind."""
    from tools.sweep.cell import Cell

    asked = study((label,), (128,), target=1e-9, seeds=(3,))
    made = Cell(asked, label, 128)
    first, second = asked.settings(label)[:2]
    task = trials.Task(0, first, TUNING_SEED)
    found = [made.train(t) for t in (task, trials.Task(1, second, 3), task)]
    for trial in found:
        del trial["curve"]["seconds"]
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
    _, _, log = train.train(run, optimizer, run.model_dir)
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
    lines = (directory / "trials.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    keys = [(r["arm"], r["batch_size"], r["index"], r["seed"]) for r in records]
    assert len(set(keys)) == len(keys)
    text = (directory / "report.md").read_text()
    assert len(re.findall(r"^\| momentum \| \d+ \| \d+ ", text, re.M)) >= 1
    for name in ("steps", "speedup", "curves_loss", "robustness"):
        assert (directory / f"{name}.png").stat().st_size > 5000


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
