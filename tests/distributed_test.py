"""Several ranks on a global batch against one process on the same batch."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

TESTS = pathlib.Path(__file__).resolve().parent
CHECKS = ("checks", "steering", "steps", "restores")


def launch(ranks, program, *arguments, timeout=900, check=True):
    """Runs a program of this folder on several ranks; returns its result."""
    command = [sys.executable, str(TESTS / program), *map(str, arguments)]
    if ranks > 1:
        horovodrun = pathlib.Path(sys.executable).parent / "horovodrun"
        command = [str(horovodrun), "-np", str(ranks), *command]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout
    )
    output = run.stdout + run.stderr
    assert not check or run.returncode == 0, output[-4000:]
    return run.returncode, output


def load(folder, ranks):
    """The weights of each case, a list with one for each rank."""
    files = [np.load(folder / f"{rank}.npz") for rank in range(ranks)]
    return {case: [f[case] for f in files] for case in files[0].files}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    launch(1, "distributed_program.py", folder)
    return load(folder, 1)


@pytest.mark.parametrize("ranks, cases", [(2, 8), (3, 9), (4, 3)])
def test_ranks_are_one_process_on_the_joint_batch(
    alone, ranks, cases, tmp_path
):
    """After 20 updates; and the ranks have the same bits."""
    launch(ranks, "distributed_program.py", tmp_path)
    found = load(tmp_path, ranks)
    assert len(found) == cases
    for case, (first, *others) in found.items():
        name = case.split(",")[0]
        half = name == "half"
        expected = alone[f"{'tokens' if half else name}, owner"][0]
        error = np.abs(first - expected).max() / np.abs(expected).max()
        assert error < (1e-2 if half else 1e-4), (case, error)
        for other in others:
            np.testing.assert_array_equal(first, other, case)


def test_on_two_ranks(tmp_path):
    """What the checks say; in one run, as the imports take their time."""
    modules = [f"distributed_{name}" for name in CHECKS]
    _, output = launch(2, "distributed_ranks.py", tmp_path, *modules)
    checks = "".join((TESTS / f"{name}.py").read_text() for name in modules)
    passed = re.findall(r"check_\w+ passed", output)
    assert len(passed) == 2 * checks.count("def check_") > 0


def test_a_killed_rank_ends_the_run_and_it_resumes(tmp_path):
    """Bit for bit on as many ranks, to 1e-4 on one."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    launch(2, "distributed_training.py", whole)
    begin = time.monotonic()
    status, output = launch(
        2, "distributed_training.py", killed, "die", check=False
    )
    assert status != 0 and time.monotonic() - begin < 90
    assert "Horovod detected that one or more processes exited" in output
    files = sorted(path.name for path in (killed / "backup").iterdir())
    assert files == ["2-0.weights.h5", "training_metadata.json"]
    shutil.copytree(killed, tmp_path / "one")
    launch(2, "distributed_training.py", killed)
    launch(1, "distributed_training.py", tmp_path / "one")
    expected = load(whole, 2)["weights"]
    for found, value in zip(load(killed, 2)["weights"], expected):
        np.testing.assert_array_equal(found, value)
    (found,) = load(tmp_path / "one", 1)["weights"]
    np.testing.assert_allclose(found, expected[0], rtol=1e-4, atol=1e-5)
    # Records of health go on, too, and have the layers of both ranks.
    lines = [
        (folder / "health" / "health.jsonl").read_text().splitlines()
        for folder in (whole, killed)
    ]
    records, others = [list(map(json.loads, x)) for x in lines]
    assert [r["update"] for r in records] == [5, 10, 15, 20]
    assert [r["update"] for r in others] == [5, 10, 15, 20]
    for record, other in zip(records, others):
        assert {x["rank"] for x in record["layers"].values()} == {0, 1}
        for path, layer in record["layers"].items():
            for name in ("condition", "rank", "damping"):
                for factor, values in layer["factors"].items():
                    found = other["layers"][path]["factors"][factor][name]
                    assert found == values[name]
        shares = [x["share"] for x in record["layers"].values()]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert "20 updates" in (killed / "health" / "health.html").read_text()


def test_more_batches_on_one_rank_end_the_run(tmp_path):
    """All ranks are told at once; Horovod would wait for 60 seconds."""
    status, output = launch(2, "distributed_stall.py", check=False)
    assert status != 0 and "Missing ranks" not in output
    said = (
        "The ranks do not do the same. Rank 0: in batch 3 of epoch 1. Rank 1: "
        "at the end of epoch 1, after 2 batches."
    )
    assert output.count(said) >= 1, output[-4000:]


def test_a_stopped_rank_is_named():
    status, output = launch(2, "distributed_stall.py", "stop", check=False)
    assert status != 0
    assert "Rank 1 does not answer: stopped, or ended" in output, output[-4000:]
    assert "Rank 0: in batch 2 of epoch 1." in output
