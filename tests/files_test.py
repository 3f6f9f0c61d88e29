"""Files that are whole or not there; one process has a lock, until it ends."""

import errno
import json
import subprocess
import sys

import pytest

from trainers import files

HOLDER = """
import pathlib, sys, time
from trainers import files
file = files.taken(pathlib.Path(sys.argv[1]))
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
        files.taken(path)
    holder.kill()
    holder.wait()
    with files.taken(path) as file, pytest.raises(BlockingIOError):
        file.write(", too")
        files.taken(path)
    with files.taken(path):
        assert path.read_text() == "kept, too"


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, capsys):
    def unknown(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", unknown)
    path = tmp_path / "lock"
    with files.taken(path):
        pass
    message = f"{path}: this file system has no locks (No locks available): see"
    assert capsys.readouterr().err.startswith(message)


def test_whole_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "summary.json"
    files.write_json(path, {"loss": float("nan")})
    with pytest.raises(TypeError, match="JSON"):
        files.write_json(path, {"loss": object()})
    assert json.loads(path.read_text()) == {"loss": "nan"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    files.write_json(path, {"loss": 1.0})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.pathlib.Path, "write_text", full)
    with pytest.raises(SystemExit, match="summary.json cannot .*No space left"):
        files.write_json(path, {"loss": 2.0})
    assert json.loads(path.read_text()) == {"loss": 1.0}
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_is_whole_or_as_it_was(tmp_path):
    """A full disk leaves the picture that there was, and no part of one."""

    class Figure:
        def __init__(self, fails):
            self.fails = fails

        def savefig(self, path, dpi):
            path.write_bytes(b"half" if self.fails else b"%d" % dpi)
            if self.fails:
                raise OSError(28, "No space left on device")

    path = tmp_path / "loss.png"
    files.write_figure(path, Figure(fails=False), dpi=7)
    with pytest.raises(SystemExit, match="loss.png cannot be written"):
        files.write_figure(path, Figure(fails=True))
    assert path.read_bytes() == b"7" and list(tmp_path.iterdir()) == [path]
