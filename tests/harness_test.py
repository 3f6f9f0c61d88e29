"""What the trainers share: flags, directories, resuming, evaluation."""

import contextlib
import fcntl
import io
import itertools
import json
import os
import shutil
import signal
import time
import zipfile

import keras
import numpy as np
import pytest
import two_ranks

import tfkfac
from tfkfac.distributed import communicator
from trainers import (
    agreement,
    callbacks,
    checkpoints,
    cifar,
    command_line,
    data,
    evaluation,
    extras,
    harness,
    launcher,
    mnist,
    output,
    schemes,
)
from trainers.models import MODELS
from trainers.steps import Steps


def check(*argv, trainer=mnist.TRAINER):
    """Returns the run of a command line."""
    return command_line.parse(trainer, ["--verbose=0", *argv])


def train(*argv):
    """Returns the summary of a run of `mnist`."""
    keras.utils.clear_session(free_memory=False)
    return harness.main(check(*argv))


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--dataset=cats", "dataset=cats: .*digits"),
        ("--model=resnet", "model=resnet: .*small_cnn"),
        ("--optimizer=newton", "optimizer=newton: .*kfac"),
        ("--schedule=cosine", "schedule=cosine: .*polynomial"),
        ("--target_metric=f1", "target_metric=f1: .*val_accuracy"),
        ("--epochs=0", "epochs=0: 0 is not a positive integer"),
        ("--batch_size=-1", "batch_size=-1: -1 is not a positive integer"),
        ("--learning_rate=0", "learning_rate=0.0: must be greater than 0"),
        ("--learning_rate=nan", "learning_rate=nan: must be greater than 0"),
        ("--damping=-1", "damping=-1.0: must be greater than 0"),
        ("--momentum=1", "momentum=1.0: must be at least 0 and less than 1"),
        ("--ema=1", "ema=1.0: must be at least 0 and less than 1"),
    ],
)
def test_bad_value(flag, message):
    with pytest.raises(SystemExit, match=message):
        check(flag)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--batch_size=1438"], "--batch_size=1438: .*1,437 .*at most"),
        (["--compare=adam,newton"], "--compare: 'newton' is no optimizer"),
        (["--compare=kfac"], "--compare: kfac is trained already"),
        (["--compare=adam,adam"], "--compare: adam is trained already"),
        (["--optimizer=adam", "--damping=1"], "--damping is no setting of"),
        (
            ["--optimizer=kfac_without_momentum", "--momentum=0.5"],
            "--momentum is no setting of --optimizer=kfac_without",
        ),
        (["--damping_target=1e-5"], "--damping_target and --damping_warmup"),
        (
            ["--damping_target=1", "--damping_warmup=9"],
            "--damping_target=1.0: must be less than --damping=0.003",
        ),
        (["--strategy=all"], "--strategy=all: must be owner"),
        (
            ["--fallback=gradient", "--fallback_learning_rate=0.1"],
            "--fallback_learning_rate=0.1: only with --fallback=adam",
        ),
        (["--schedule=steps", "--decay_at=40,x"], "--decay_at=x: must be"),
        (["--schedule=steps", "--decay_at="], "--decay_at: is empty"),
        (["--strategy=²"], "--strategy=²: must be owner"),
        (
            ["--update_interval=late", "--inverse_update_period=9"],
            "--inverse_update_period: the period is that of --update_interval",
        ),
        (
            ["--schedule=polynomial", "--decay_start=3", "--decay_end=2"],
            "--decay_end=2.0: must be after --decay_start=3.0",
        ),
        (["--adjust_epochs", "--batch_size=64"], "--adjust_epochs: .*below"),
        (["--target_value=0.5"], "--target_metric and --target_value"),
        (["--resume"], "--resume: give the run's directory"),
        (["--resume", "--compare=adam"], "--resume: not with --compare"),
        (["--health", "--optimizer=sgd"], "--health: .*give --optimizer=kfac"),
        (["--ema=0.9", "--gradient_accumulation_steps=2"], "--ema: not with"),
        (["--json"], "--json: only with --dry_run"),
        (["--model_dir=file/run"], "--model_dir=file/run: cannot write"),
        (["--model_dir=file"], "--model_dir=file: cannot write"),
        (["--resume", "--model_dir=none"], "no configuration.json"),
        (["--model_dir=gs://a/b"], "--model_dir=gs://a/b: is no local dir"),
    ],
)
def test_bad_run(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SystemExit, match=message):
        harness.main(check(*argv))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    "argv, multiple",
    [
        (["--batch_size=100"], "3 ranks; give a multiple of 3"),
        (
            ["--batch_size=96", "--gradient_accumulation_steps=5"],
            "3 ranks in 5 micro-steps; give a multiple of 15",
        ),
        (
            ["--batch_size=48", "--model=resnet32_ghost"],
            "3 ranks and groups of 32 .*; give a multiple of 96",
        ),
    ],
)
def test_batch_that_cannot_be_shared_out(argv, multiple, monkeypatch):
    monkeypatch.setenv("HOROVOD_SIZE", "3")
    size = argv[0].split("=")[1]
    with pytest.raises(SystemExit, match=f"batch_size={size}: .*{multiple}"):
        check("--dataset=digits", *argv, trainer=cifar.TRAINER)


@pytest.mark.parametrize(
    "names",
    [
        ("HOROVOD_SIZE", "HOROVOD_RANK"),
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        ("PMI_SIZE", "PMI_RANK"),
    ],
)
def test_launchers_are_known(names, monkeypatch, tmp_path):
    """Only rank 0 makes the directory of a run."""
    assert (launcher.size(), launcher.rank()) == (1, 0)
    for name, value in zip(names, "21"):
        monkeypatch.setenv(name, value)
    assert (launcher.size(), launcher.rank()) == (2, 1)
    compared = []
    monkeypatch.setattr(
        agreement, "require", lambda *args: compared.append(args)
    )
    monkeypatch.setattr(tfkfac, "init", lambda: "ranks")
    run = check("--seed=3", f"--model_dir={tmp_path / 'run'}")
    assert run.model_dir.name == "null" and not list(tmp_path.iterdir())
    ((values, ranks, _),) = compared
    assert ranks == "ranks" and values["--seed"] == 3
    # Each may tell as much as it likes.
    assert {"--data_dir", "--learning_rate", "--augment"} < values.keys()
    assert "--verbose" not in values


@contextlib.contextmanager
def another_job(path):
    """Has a directory in the way of a job of another process."""
    with (path / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("more", [[], ["--resume"], ["--overwrite"]])
def test_a_second_job_in_a_directory_is_refused(more, run_dir):
    path, before = run_dir
    if not more:
        path = path.parent / "new"
        path.mkdir()
    argv = ["--optimizer=momentum", "--epochs=2", f"--model_dir={path}", *more]
    message = f"--model_dir={path}: another job runs in it; wait"
    with another_job(path), pytest.raises(SystemExit, match=message):
        train(*argv)
    found = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert found == (before if more else {path / ".lock": b""})


def test_all_ranks_refuse_a_directory_that_is_taken(tmp_path):
    run = check(f"--model_dir={tmp_path}")

    def of_rank(ranks):
        try:
            with harness.claimed(run, ranks):
                return "claimed"
        except SystemExit as end:
            return end.code

    with another_job(tmp_path):
        first, second = two_ranks.run(2, of_rank)
    assert first == second and "another job runs in it" in first
    assert two_ranks.run(2, of_rank) == ["claimed"] * 2


def test_what_came_into_a_directory_after_the_flags_were_checked(tmp_path):
    """A job that was started a second earlier, and has ended."""
    new, resumed = check(f"--model_dir={tmp_path}"), tmp_path / "resumed"
    (tmp_path / "configuration.json").write_text("{}")
    with pytest.raises(SystemExit, match="configuration.json of another run"):
        harness.main(new)
    assert (tmp_path / "configuration.json").read_text() == "{}"
    resumed.mkdir()
    configuration = output.plain(new.configuration())
    output.write_json(resumed / "configuration.json", configuration)
    again = check("--resume", f"--model_dir={resumed}")
    output.write_json(
        resumed / "configuration.json", {**configuration, "seed": 9}
    )
    with pytest.raises(SystemExit, match="seed is 0 now and was 9"):
        harness.main(again)


def test_missing_package_is_named():
    with pytest.raises(SystemExit, match=r"pip install 'tfkfac\[plot\]'"):
        extras.require("no_such_package", "plot", "--compare")


def test_flags_override_settings(tmp_path):
    run = check(
        "--damping=0.5",
        "--inverter=eigen",
        "--kl_clip=inf",
        "--compare=momentum",
        f"--model_dir={tmp_path}",
    )
    changed = {"damping": 0.5, "inverter": "eigen", "kl_clip": np.inf}
    assert run.settings["kfac"] == {**mnist.SETTINGS["kfac"], **changed}
    assert run.settings["momentum"] == mnist.SETTINGS["momentum"]


def test_another_run_is_kept(tmp_path):
    model_dir = f"--model_dir={tmp_path}"
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(SystemExit, match="summary.json is there, and no conf"):
        check(model_dir, "--overwrite")
    output.clear(tmp_path)
    assert (tmp_path / "summary.json").exists()
    (tmp_path / "configuration.json").write_text("{}")
    for name in ("checkpoints/00000001.keras", "compare_adam/log.jsonl",
                 "tensorboard/kfac/events.out.tfevents.1"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("of the run")
    mine = {"notes.txt", "compare_notes.txt", "tensorboard/mine",
            "spectra/mine/a.txt", "compare_adam/notes"}  # fmt: skip
    for name in mine:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("kept")
    with pytest.raises(SystemExit, match="configuration.json of another run"):
        check(model_dir)
    assert (tmp_path / "summary.json").read_text() == "{}"
    # Until it is known that the new run can be.
    bad = ["--damping=1", "--damping_target=0.001", "--damping_warmup=3"]
    with pytest.raises(SystemExit, match="--optimizer=kfac: WarmupDamping"):
        harness.main(check(model_dir, "--overwrite", *bad))
    assert (tmp_path / "summary.json").read_text() == "{}"
    run = check(model_dir, "--overwrite")
    output.clear(run.model_dir)
    left = {p for p in tmp_path.rglob("*") if not p.is_dir()}
    assert {str(p.relative_to(tmp_path)) for p in left} == mine
    assert not (tmp_path / "checkpoints").exists()


def test_checkpoints_may_lie_elsewhere(tmp_path):
    there, run = tmp_path / "there", tmp_path / "run"
    there.mkdir()
    run.mkdir()
    (run / "checkpoints").symlink_to(there)
    for path in (there / "00000002.keras", there / "mine", run / "log.csv",
                 run / "configuration.json"):  # fmt: skip
        path.write_text("")
    output.clear(run)
    assert [path.name for path in there.iterdir()] == ["mine"]
    assert not list(run.glob("*.csv"))
    output.write_json(run / "a.json", {})
    (run / "partial_a.json").mkdir()
    with pytest.raises(SystemExit, match="partial_a.json is a folder"):
        output.write_json(run / "a.json", {"b": 1})
    assert json.loads((run / "a.json").read_text()) == {}


@pytest.mark.parametrize("text", ["3", "null", "[]", '{"settings": 3}', "{"])
def test_a_configuration_of_another_form_is_named(text, tmp_path):
    (tmp_path / "configuration.json").write_text(text)
    with pytest.raises(SystemExit, match="configuration.json is corrupt"):
        output.resumed(str(tmp_path), {"settings": {}})


def test_default_directories_are_fresh(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [str(check().model_dir) for _ in range(3)]
    assert found == [f"runs/digits_kfac{end}" for end in ("", "_2", "_3")]


def test_whole_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "summary.json"
    output.write_json(path, {"loss": float("nan")})
    with pytest.raises(TypeError, match="JSON"):
        output.write_json(path, {"loss": object()})
    assert json.loads(path.read_text()) == {"loss": "nan"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    output.write_json(path, {"loss": 1.0})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.pathlib.Path, "write_text", full)
    with pytest.raises(SystemExit, match="summary.json cannot .*No space left"):
        output.write_json(path, {"loss": 2.0})
    assert json.loads(path.read_text()) == {"loss": 1.0}
    assert list(tmp_path.iterdir()) == [path]


def test_steps_and_ends_of_epochs():
    """1,437 digits in batches of 128: 11.2 updates an epoch."""
    steps = Steps(1437, 128, 3)
    assert steps.total == 34
    assert steps.ends(None, None) == [12, 23, 34]
    assert steps.ends(None, 17) == [12, 17]
    assert steps.ends(10, None) == [10, 20, 30, 34]
    assert steps.ends(10, 30) == [10, 20, 30]
    assert Steps(1000, 100, 2).ends(None, None) == [10, 20]


@pytest.mark.parametrize(
    "argv",
    [
        ["--optimizer=sgd", "--learning_rate=1e20"],
        ["--optimizer=kfac", "--kl_clip=inf", "--momentum=0.9"],
    ],
)
def test_divergence_is_an_error(argv, tmp_path):
    run = check(*argv, "--epochs=3", f"--model_dir={tmp_path}")
    with pytest.raises(SystemExit, match="diverged within .* lower --learning"):
        harness.main(run)
    assert not (tmp_path / "summary.json").exists()


def test_tensorboard_logs(tmp_path):
    summary = train(
        "--optimizer=sgd",
        "--tensorboard",
        "--steps=1",
        "--batch_size=1000",
        f"--model_dir={tmp_path}",
    )
    assert summary["steps"] == 1
    assert list((tmp_path / "tensorboard" / "sgd").glob("events*"))


def test_step_losses_are_those_of_the_batches():
    x = np.arange(12.0).reshape(12, 1)
    model = keras.Sequential([keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse")
    losses = callbacks.StepLosses()
    y = np.zeros_like(x)
    fit = dict(batch_size=4, shuffle=False, verbose=0, callbacks=[losses])
    model.fit(x, y, epochs=2, **fit)
    expected = np.mean(np.reshape(x**2, [3, 4]), axis=1)
    np.testing.assert_allclose(losses.values, np.tile(expected, 2), rtol=1e-6)


def test_parameters_of_small_cnn():
    small_cnn = MODELS["small_cnn"]
    assert small_cnn((8, 8, 1), 10).count_params() == 13_706
    assert small_cnn((28, 28, 1), 10).count_params() == 105_866
    # The "Simple CNN" of Zhang et al. 2019, F.2.
    assert MODELS["simple_cnn"]((28, 28, 1), 10).count_params() == 3_274_634


# Resuming.


def interrupt(monkeypatch, step):
    """Has the process get a SIGINT in a step of a call of `fit`."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(
        callbacks.StopOnNaN,
        "on_train_batch_begin",
        on_train_batch_begin,
        raising=False,
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["--optimizer=kfac", "--inverse_update_period=4", "--health"],
        ["--optimizer=kfac", "--schedule=linear", "--mixup=0.4"]
        + ["--gradient_accumulation_steps=2", "--update_interval=growing"],
        ["--optimizer=adam", "--ema=0.9", "--random_erasing"],
    ],
)
def test_resumed_run_is_the_uninterrupted_one(argv, tmp_path, monkeypatch):
    """On one rank, after Ctrl-C in mid-epoch: all bits of state and log."""
    argv = [*argv, "--epochs=2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train(*argv, f"--model_dir={whole}")
    with monkeypatch.context() as patch:
        interrupt(patch, 6)
        with pytest.raises(SystemExit) as interrupted:
            train(*argv, f"--model_dir={parts}")
    assert interrupted.value.code == 130
    assert not (parts / "summary.json").exists()
    step = 4 if "--gradient_accumulation_steps=2" in argv else 7
    assert checkpoints.latest(parts).name == f"{step:08d}.keras"
    found = train(*argv, f"--model_dir={parts}", "--resume")
    for key in ("steps", "train_loss", "test_loss", "test_accuracy"):
        assert found[key] == expected[key]
    last = [checkpoints.latest(folder) for folder in (whole, parts)]
    logs = [checkpoints.read(path)[0]["records"] for path in last]
    for record in sum(logs, []):
        del record["seconds"]
    assert logs[0] == logs[1]
    for a, b in zip(load(last[0]), load(last[1])):
        np.testing.assert_array_equal(a, b)
    if "--health" in argv:
        lines = [(p / "health.jsonl").read_text() for p in (whole, parts)]
        a, b = ([*map(json.loads, x.splitlines())] for x in lines)
        assert [r["update"] for r in a] == [12, 23]
        assert [r["update"] for r in b] == [7, 12, 23]
        assert a[-1]["layers"] == b[-1]["layers"]
        assert "23 updates in 2 epochs" in (parts / "health.html").read_text()


def load(path):
    """Returns the weights and the optimizer's state of a checkpoint."""
    model = keras.models.load_model(path)
    optimizer = model.optimizer
    if isinstance(optimizer, tfkfac.KFAC):
        tfkfac.attach(model)
    found = [v.numpy() for v in model.variables + optimizer.variables]
    if isinstance(optimizer, tfkfac.KFAC):
        state = optimizer.curvature.state()
        found += [state[key] for key in sorted(state)]
        assert len(state) > 10
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two epochs, with a checkpoint of each."""
    path = tmp_path_factory.mktemp("finished") / "run"
    train("--optimizer=momentum", "--epochs=2", f"--model_dir={path}")
    return path


@pytest.fixture
def run_dir(finished, tmp_path):
    """A copy of it, and what is in it."""
    path = shutil.copytree(finished, tmp_path / "run")
    return path, {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def resume(path, *argv):
    argv = ["--optimizer=momentum", "--epochs=2", *argv]
    return train(*argv, f"--model_dir={path}", "--resume")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--epochs=3"], "epochs is 3 now and was 2"),
        (["--seed=1"], "seed is 1 now and was 0"),
        (["--learning_rate=0.5"], "learning_rate is 0.5 now and was 0.1"),
        (
            ["--optimizer=adam"],
            "optimizer is 'adam' now and was 'momentum'",
        ),
    ],
)
def test_another_configuration_is_not_resumed(argv, message, run_dir):
    path, before = run_dir
    with pytest.raises(SystemExit, match=f"{path} holds .*{message}"):
        resume(path, *argv)
    after = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert after == before


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--seed=1"], "seed is 0 now and was 1"),
        (["--optimizer=adam"], "optimizer is 'momentum' now and was 'adam'"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(argv, message, run_dir):
    """Of the same shapes, and in the place of the last one."""
    path, before = run_dir
    other = path.parent / "other"
    flags = ["--optimizer=momentum", "--epochs=2", "--steps=1", *argv]
    train(*flags, f"--model_dir={other}")
    last = checkpoints.latest(path)
    shutil.copy(checkpoints.latest(other), last)
    copied = last.read_bytes()
    with pytest.raises(SystemExit, match=f"{last} is of another.*{message}"):
        resume(path)
    after = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert after == {**before, last: copied}


STATE = {"configuration": {}, "step": 1, "begun": False, "seconds": 0.5,
         "records": [], "variables": 0, "ranks": 1}  # fmt: skip


def without(key):
    return json.dumps({k: v for k, v in STATE.items() if k != key})


@pytest.mark.parametrize(
    "state",
    [
        "[]",
        "3",
        *(without(key) for key in STATE),
        *(
            json.dumps(STATE | change)
            for change in (
                {"configuration": None},
                {"ranks": 0},
                {"records": 3},
                {"records": [3]},
                {"records": [{"step": "1"}]},
                {"step": "15"},
                {"step": -5},
                {"step": 1.5},
                {"begun": 0},
                {"seconds": -1},
            )
        ),
    ],
)
def test_checkpoint_of_another_form_is_named(state, tmp_path):
    path = tmp_path / "00000001.keras"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("run.json", state)
        arrays = io.BytesIO()
        np.savez(arrays, none=np.zeros(1))
        file.writestr("of_ranks.npz", arrays.getvalue())
    with pytest.raises(SystemExit, match="00000001.keras is corrupt"):
        checkpoints.read(path)


def test_a_checkpoint_of_another_step_is_refused(run_dir):
    path, before = run_dir
    last = checkpoints.latest(path)
    other = last.with_name("00000099.keras")
    shutil.copy(last, other)
    with pytest.raises(SystemExit, match=f"{other} is corrupt .*step=23.*rem"):
        resume(path)
    after = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert after == {**before, other: before[last]}


@pytest.mark.parametrize("spoil", ["cut", "flip"])
def test_corrupt_checkpoint_is_named(spoil, run_dir):
    path, before = run_dir
    file = checkpoints.latest(path)
    content = bytearray(file.read_bytes())
    if spoil == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(SystemExit, match="00000023.keras is corrupt .*remove"):
        resume(path)
    after = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert after == {**before, file: bytes(content)}
    # Without it, the run goes on from the one before.
    file.unlink()
    assert resume(path)["steps"] == 23


def test_a_clock_that_jumps_back_counts_for_nothing(tmp_path, monkeypatch):
    for name in ("time", "perf_counter"):
        now = itertools.count(time.time(), -60.0)
        monkeypatch.setattr(time, name, lambda now=now: next(now))
    summary = train("--optimizer=sgd", "--steps=2", f"--model_dir={tmp_path}")
    assert 0 < summary["seconds"] < 600


def test_finished_run_is_resumed_as_it_is(run_dir):
    path, _ = run_dir
    expected = json.loads((path / "summary.json").read_text())
    found = resume(path)
    for key in ("train_loss", "test_loss", "steps", "seconds"):
        assert found[key] == expected[key]


@pytest.mark.parametrize(
    "argv, steps",
    [
        # Reached at the end of the first epoch, 12 steps.
        (["--target_metric=val_accuracy", "--target_value=0.05"], 15),
        (["--steps=13"], 15),
        (["--steps=5"], 15),
        (["--evaluation_period=7"], 21),
    ],
)
def test_a_begun_part_is_ended(argv, steps, tmp_path):
    """So that the summary, the log and the model are of the same step."""
    flags = ["--optimizer=sgd", "--epochs=2", f"--model_dir={tmp_path}"]
    train(*flags, "--steps=15", "--target_metric=loss", "--target_value=0.001")
    limit = [] if "--steps" in argv[0] else [f"--steps={steps}"]
    summary = train(*flags, *argv, *limit, "--resume")
    assert summary["steps"] == steps
    model = keras.models.load_model(tmp_path / "model.keras")
    assert int(model.optimizer.iterations) == steps
    _, accuracy = evaluated(model)
    assert summary["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)


def evaluated(model):
    """Returns the loss and the accuracy on the test split."""
    (batch,) = data.load("digits").evaluation("test", 360)
    x, y, _ = batch
    return model.evaluate(x, y, verbose=0)


def test_resume_needs_a_checkpoint_of_a_run_that_has_a_log(tmp_path):
    argv = ["--optimizer=sgd", "--steps=2", "--keep_checkpoints=0"]
    argv.append(f"--model_dir={tmp_path}")
    train(*argv)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(SystemExit, match="has the log of a run"):
        train(*argv, "--resume")
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert after == before


def test_places_of_a_decay_in_any_order():
    flags = ["--schedule=steps", "--epochs=10", "--optimizer=sgd", "--dry_run"]
    rates = []
    for places in ("40%,80%", "80%,40%"):
        run = check(*flags, f"--decay_at={places}")
        schedule = schemes.learning_rate(run.args, 1.0, run.steps)
        rates.append([float(schedule(t)) for t in range(run.steps.total)])
    assert rates[0] == rates[1] == sorted(rates[0], reverse=True)
    assert len(set(rates[0])) == 3


def test_checkpoints_are_kept_by_number(tmp_path):
    argv = ["--optimizer=sgd", "--steps=5", "--evaluation_period=1"]
    for keep, expected in ((2, [4, 5]), (-1, [1, 2, 3, 4, 5]), (0, [])):
        path = tmp_path / str(keep)
        train(*argv, f"--keep_checkpoints={keep}", f"--model_dir={path}")
        found = sorted(path.glob("checkpoints/*"))
        assert [p.name for p in found] == [f"{n:08d}.keras" for n in expected]


@pytest.mark.parametrize(
    "metric, value", [("val_accuracy", 0.5), ("loss", 2.1)]
)
def test_target_ends_a_run(metric, value, tmp_path):
    summary = train(
        "--optimizer=adam",
        f"--target_metric={metric}",
        f"--target_value={value}",
        "--evaluation_period=2",
        f"--model_dir={tmp_path}",
    )
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    good = [
        r[metric] <= value if "loss" in metric else r[metric] >= value
        for r in found
    ]
    assert len(good) > 1 and good == [False] * (len(good) - 1) + [True]
    assert summary["steps"] == found[-1]["step"] < 113
    assert summary["seconds"] == found[-1]["seconds"]
    target = {"metric": metric, "value": value, "reached": True}
    assert summary["target"] == target


# Evaluation.


def test_evaluation_counts_every_example_once(monkeypatch):
    """360 digits in batches of 100, of which the last is filled up."""
    digits = data.load("digits")
    keras.utils.set_random_seed(0)
    model = MODELS["small_cnn"]((8, 8, 1), 10)
    ranks = communicator.LocalCommunicator()
    found = evaluation.Evaluation(model, ranks)(digits.evaluation("test", 100))
    x, y, _ = next(iter(digits.evaluation("test", 360)))
    logits = np.asarray(model(x), "float64")
    losses = np.log(np.exp(logits).sum(-1)) - logits[range(360), y]
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    accuracy = np.mean(logits.argmax(-1) == np.asarray(y))
    assert found["accuracy"] == pytest.approx(accuracy)


def test_averaged_weights_are_evaluated(tmp_path):
    """And training goes on from the weights themselves."""
    argv = ["--optimizer=sgd", "--learning_rate=0.5", "--epochs=2"]
    plain = train(*argv, f"--model_dir={tmp_path / 'plain'}")
    summary = train(*argv, "--ema=0.8", f"--model_dir={tmp_path / 'ema'}")
    assert summary["train_loss"] == plain["train_loss"]
    assert summary["test_loss"] != plain["test_loss"]
    saved = keras.models.load_model(tmp_path / "ema" / "model.keras")
    digits = data.load("digits")
    ranks = communicator.LocalCommunicator()
    batches = digits.evaluation("test", 128)
    found = evaluation.Evaluation(saved, ranks)(batches)
    assert found["loss"] == pytest.approx(summary["test_loss"], rel=1e-5)
    raw = keras.models.load_model(checkpoints.latest(tmp_path / "ema"))
    np.testing.assert_array_equal(
        raw.get_weights()[0],
        keras.models.load_model(
            checkpoints.latest(tmp_path / "plain")
        ).get_weights()[0],
    )
