"""One process has a lock, until it ends."""

import errno
import subprocess
import sys

import pytest

from trainers import locks

HOLDER = """
import pathlib, sys, time
from trainers import locks
file = locks.taken(pathlib.Path(sys.argv[1]))
print("taken", flush=True)
time.sleep(600)
"""


def test_a_lock_ends_with_its_process(tmp_path):
    """However it ends; and the file stays."""
    path = tmp_path / "lock"
    path.write_text("kept")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "taken\n"
    with pytest.raises(BlockingIOError):
        locks.taken(path)
    holder.kill()
    holder.wait()
    with locks.taken(path) as file, pytest.raises(BlockingIOError):
        file.write(", too")
        locks.taken(path)
    with locks.taken(path):
        assert path.read_text() == "kept, too"


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, capsys):
    def unknown(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", unknown)
    path = tmp_path / "lock"
    with locks.taken(path):
        pass
    message = f"{path}: this file system has no locks (No locks available): see"
    assert capsys.readouterr().err.startswith(message)
