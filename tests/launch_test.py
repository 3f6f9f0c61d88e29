"""Ranks that were given different values; errors that are no fault of the
program."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest
import two_ranks

from tfkfac.distributed.roll_call import RanksError
from trainers import command_line, launch, run_directory

FLAGS = {"--seed": 0, "--augment": True, "--data_dir": None}


def test_ranks_end_with_a_sentence_in_place_of_a_traceback():
    said = "Rank 1 does not answer"
    with pytest.raises(SystemExit, match=said), launch.in_a_sentence():
        raise RanksError(said)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_files(number, tmp_path, monkeypatch):
    error = OSError(number, "Too many open files", "data.npz")
    said = "^data.npz cannot be opened, as too many are open; allow more"
    with pytest.raises(SystemExit, match=said), launch.in_a_sentence():
        raise error

    def too_many(**kind):
        raise error

    # It is no fault of the directory.
    monkeypatch.setattr(run_directory.tempfile, "TemporaryFile", too_many)
    with pytest.raises(SystemExit, match=said), launch.in_a_sentence():
        run_directory.make_model_dir(str(tmp_path), "run")


def test_a_full_disk_is_not_blamed_on_stdout():
    error = OSError(errno.ENOSPC, "No space left on device")
    said = "^a file cannot be written .No space left on device.: what was saved"
    with pytest.raises(SystemExit, match=said), launch.in_a_sentence():
        raise error


_PRINTS = """
from trainers import launch
with launch.in_a_sentence():
    print("sound", flush=True)
    input()
    print("lost")
"""


@pytest.mark.parametrize("full", [False, True])
def test_a_stdout_that_is_lost_is_named(full):
    """As by `| head -1`; and no traceback follows when the process ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PRINTS],
        cwd=pathlib.Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=os.open("/dev/full", os.O_WRONLY) if full else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if not full:
        assert process.stdout.readline() == "sound\n"
        process.stdout.close()
        process.stdin.write("\n")
    process.stdin.close()
    reason = "No space left on device" if full else "Broken pipe"
    assert process.stderr.read() == (
        f"stdout cannot be written ({reason}): what was saved is whole, and "
        "--resume goes on from there\n"
    )
    assert process.wait() == 1


def test_a_file_of_flags_that_is_no_text_is_named(tmp_path):
    file = tmp_path / "flags"
    file.write_bytes(b"--epochs=\xff\xfe\n")
    for given in ([f"--flagfile={file}"], ["-flagfile", str(file)]):
        with pytest.raises(SystemExit, match=f"--flagfile={file}: is no text"):
            command_line.parsed(["mnist", "--verbose=1", *given])


def test_other_errors_keep_their_traceback():
    error = RuntimeError("another")
    with pytest.raises(RuntimeError) as caught, launch.in_a_sentence():
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, None),
        ({1: {"--seed": 1}}, "rank 1: --seed is 1, on rank 0 it is 0; give"),
        (
            {2: {"--augment": False, "--data_dir": "/data"}},
            "rank 2: --augment is False, on rank 0 it is True; --data_dir is "
            "/data, on rank 0 it is None; give all ranks the same flags",
        ),
    ],
)
def test_all_ranks_tell_who_differs(changes, message):
    def of_rank(ranks):
        values = {**FLAGS, **changes.get(ranks.rank, {})}
        try:
            launch.require_same(values, ranks, "flags")
        except SystemExit as end:
            return end.code

    first, *others = two_ranks.run(3, of_rank)
    assert others == [first] * 2
    assert first is None if message is None else first.startswith(message)


def test_one_process_needs_no_agreement(monkeypatch):
    monkeypatch.setattr(launch, "require_same", pytest.fail)
    launch.require_same_flags({"seed": 0})
