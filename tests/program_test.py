"""How a trainer ends by an error that is no fault of the program."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from tfkfac.distributed.roll_call import RanksError
from trainers import output, program


def test_ranks_end_with_a_sentence_in_place_of_a_traceback():
    said = "Rank 1 does not answer"
    with pytest.raises(SystemExit, match=said), program.in_a_sentence():
        raise RanksError(said)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_files(number, tmp_path, monkeypatch):
    error = OSError(number, "Too many open files", "data.npz")
    said = "^data.npz cannot be opened, as too many are open; allow more"
    with pytest.raises(SystemExit, match=said), program.in_a_sentence():
        raise error

    def too_many(**kind):
        raise error

    # It is no fault of the directory.
    monkeypatch.setattr(output.tempfile, "TemporaryFile", too_many)
    with pytest.raises(SystemExit, match=said), program.in_a_sentence():
        output.make_model_dir(str(tmp_path), "run")


def test_a_full_disk_is_not_blamed_on_stdout():
    error = OSError(errno.ENOSPC, "No space left on device")
    said = "^a file cannot be written .No space left on device.: what was saved"
    with pytest.raises(SystemExit, match=said), program.in_a_sentence():
        raise error


_PRINTS = """
from trainers import output, program
with program.in_a_sentence():
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
            program.parsed(["mnist", "--verbose=1", *given])


def test_other_errors_keep_their_traceback():
    error = RuntimeError("another")
    with pytest.raises(RuntimeError) as caught, program.in_a_sentence():
        raise error
    assert caught.value is error
