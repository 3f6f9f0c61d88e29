"""Flags of the trainers: what is refused, resolved and compared."""

import numpy as np
import pytest
from mnist_runs import check

import tfkfac
from trainers import cifar, launch, optimizers, train
from trainers.configs import mnist


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
        (["--model_dir="], "--model_dir: is empty; give a directory, or"),
        (["--model_dir=gs://a/b"], "--model_dir=gs://a/b: is no local dir"),
    ],
)
def test_bad_run(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SystemExit, match=message):
        train.main(check(*argv))
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
    assert (launch.size(), launch.rank()) == (1, 0)
    for name, value in zip(names, "21"):
        monkeypatch.setenv(name, value)
    assert (launch.size(), launch.rank()) == (2, 1)
    compared = []
    monkeypatch.setattr(
        launch, "require_same", lambda *args: compared.append(args)
    )
    monkeypatch.setattr(tfkfac, "init", lambda: "ranks")
    run = check("--seed=3", f"--model_dir={tmp_path / 'run'}")
    assert run.model_dir.name == "null" and not list(tmp_path.iterdir())
    ((values, ranks, _),) = compared
    assert ranks == "ranks" and values["--seed"] == 3
    # Each may tell as much as it likes.
    assert {"--data_dir", "--learning_rate", "--augment"} < values.keys()
    assert "--verbose" not in values


def test_missing_package_is_named():
    with pytest.raises(SystemExit, match=r"pip install 'tfkfac\[plot\]'"):
        launch.require_package("no_such_package", "plot", "--compare")


def test_flags_override_settings(tmp_path):
    run = check(
        "--damping=0.5",
        "--inverter=eigen",
        "--kl_clip=inf",
        "--compare=momentum",
        f"--model_dir={tmp_path}",
    )
    changed = {"damping": 0.5, "inverter": "eigen", "kl_clip": np.inf}
    assert run.settings["kfac"] == {**mnist.SETTINGS["kfac"].given(), **changed}
    assert run.settings["momentum"] == mnist.SETTINGS["momentum"].given()


def test_default_directories_are_fresh(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [str(check().model_dir) for _ in range(3)]
    assert found == [f"runs/digits_kfac{end}" for end in ("", "_2", "_3")]


def test_places_of_a_decay_in_any_order():
    flags = ["--schedule=steps", "--epochs=10", "--optimizer=sgd", "--dry_run"]
    rates = []
    for places in ("40%,80%", "80%,40%"):
        run = check(*flags, f"--decay_at={places}")
        schedule = optimizers.learning_rate(run.config, 1.0, run.steps)
        rates.append([float(schedule(t)) for t in range(run.steps.total)])
    assert rates[0] == rates[1] == sorted(rates[0], reverse=True)
    assert len(set(rates[0])) == 3
