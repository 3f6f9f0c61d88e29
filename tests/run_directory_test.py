"""A run's directory: whose it is, and files that are whole."""

import contextlib
import fcntl
import json

import pytest
import two_ranks
from mnist_runs import check
from mnist_runs import train as run_mnist

from trainers import files, run_directory, train


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
        run_mnist(*argv)
    found = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert found == (before if more else {path / ".lock": b""})


def test_all_ranks_refuse_a_directory_that_is_taken(tmp_path):
    run = check(f"--model_dir={tmp_path}")

    def of_rank(ranks):
        try:
            with run_directory.claimed(run, ranks):
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
        train.main(new)
    assert (tmp_path / "configuration.json").read_text() == "{}"
    resumed.mkdir()
    configuration = files.plain(new.configuration())
    files.write_json(resumed / "configuration.json", configuration)
    again = check("--resume", f"--model_dir={resumed}")
    files.write_json(
        resumed / "configuration.json", {**configuration, "seed": 9}
    )
    with pytest.raises(SystemExit, match="seed is 0 now and was 9"):
        train.main(again)


def test_another_run_is_kept(tmp_path):
    model_dir = f"--model_dir={tmp_path}"
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(SystemExit, match="summary.json is there, and no conf"):
        check(model_dir, "--overwrite")
    run_directory.clear(tmp_path)
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
        train.main(check(model_dir, "--overwrite", *bad))
    assert (tmp_path / "summary.json").read_text() == "{}"
    run = check(model_dir, "--overwrite")
    run_directory.clear(run.model_dir)
    left = {p for p in tmp_path.rglob("*") if not p.is_dir()}
    assert {str(p.relative_to(tmp_path)) for p in left} == mine
    assert not (tmp_path / "checkpoints").exists()


def test_only_what_a_run_wrote_is_removed(tmp_path):
    """Of the optimizers that its configuration names."""
    run_directory.write_configuration(tmp_path, {"optimizer": "kfac"}, ["adam"])
    of_run = {"loss.csv", "compare_adam/log.csv", "log.csv",
              "checkpoints/partial_00000012.keras",
              "tensorboard/adam/events.out.tfevents.1",
              "tensorboard/kfac/events.out.tfevents.1"}  # fmt: skip
    mine = {"compare_mine/log.csv", "compare_sgd/log.csv",
            "checkpoints/partial_mine.keras",
            "tensorboard/mine/events.out.tfevents.1",
            "tensorboard/sgd/events.out.tfevents.1"}  # fmt: skip
    for name in of_run | mine:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    run_directory.clear(tmp_path)
    left = {p for p in tmp_path.rglob("*") if not p.is_dir()}
    assert {str(p.relative_to(tmp_path)) for p in left} == mine
    # A run without a comparison has no file of one.
    (tmp_path / "loss.csv").touch()
    run_directory.write_configuration(tmp_path, {"optimizer": "sgd"}, [])
    run_directory.clear(tmp_path)
    assert (tmp_path / "loss.csv").exists()
    assert (tmp_path / "compare_sgd/log.csv").exists()
    assert not (tmp_path / "tensorboard/sgd").exists()


def test_the_configuration_is_read_without_what_is_compared(tmp_path):
    """So that such a run can be resumed."""
    configuration = {"seed": 3, "settings": {"learning_rate": 0.5}}
    run_directory.write_configuration(tmp_path, configuration, ["adam"])
    assert run_directory.read_configuration(tmp_path) == configuration
    assert run_directory.resumed(tmp_path, configuration) == tmp_path


@pytest.mark.parametrize(
    "name, more",
    [
        ("checkpoints", []),
        ("compare_adam", ["--compare=adam"]),
        ("tensorboard", []),
        ("tensorboard/kfac", []),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_named(name, more, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    message = f"--model_dir={tmp_path}: {name} is a file where the run needs a"
    with pytest.raises(SystemExit, match=message):
        check(f"--model_dir={tmp_path}", *more)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(SystemExit, match="checkpoints: cannot write there"):
        run_directory.make_folder(tmp_path / "checkpoints")


def test_a_configuration_of_any_depth_is_compared(tmp_path):
    for depth in (900, 960, 990):
        deep = "[" * depth + "]" * depth
        file = tmp_path / "configuration.json"
        file.write_text(f'{{"seed": {deep}}}')
        with pytest.raises(SystemExit, match="corrupt|seed is 3 now and was"):
            run_directory.resumed(tmp_path, {"seed": 3})


def test_checkpoints_may_lie_elsewhere(tmp_path):
    there, run = tmp_path / "there", tmp_path / "run"
    there.mkdir()
    run.mkdir()
    (run / "checkpoints").symlink_to(there)
    for path in (there / "00000002.keras", there / "mine", run / "log.csv",
                 run / "configuration.json"):  # fmt: skip
        path.write_text("")
    run_directory.clear(run)
    assert [path.name for path in there.iterdir()] == ["mine"]
    assert not list(run.glob("*.csv"))
    files.write_json(run / "a.json", {})
    (run / "partial_a.json").mkdir()
    with pytest.raises(SystemExit, match="partial_a.json is a folder"):
        files.write_json(run / "a.json", {"b": 1})
    assert json.loads((run / "a.json").read_text()) == {}


@pytest.mark.parametrize("text", ["3", "null", "[]", '{"settings": 3}', "{"])
def test_a_configuration_of_another_form_is_named(text, tmp_path):
    (tmp_path / "configuration.json").write_text(text)
    with pytest.raises(SystemExit, match="configuration.json is corrupt"):
        run_directory.resumed(str(tmp_path), {"settings": {}})
