"""The command line, and what a study leaves."""

import pathlib
import subprocess
import sys

import pytest
from timed_runs import PEERS, record

from tools.time_to_target import report, studies


def test_command_line(tmp_path):
    """Flags that are wrong, and a report of no run, end with a sentence."""

    def end(*given):
        run = subprocess.run(
            [sys.executable, "-m", "tools.time_to_target", *given],
            capture_output=True,
            text=True,
            cwd=pathlib.Path(__file__).resolve().parent.parent,
        )
        assert run.returncode != 0
        return run.stdout + run.stderr

    assert "--stay: tied has no targets" in end("--study=tied", "--stay")
    found = end(f"--output_dir={tmp_path}", "--report_only")
    assert f"{tmp_path}: there is no run of peers yet" in found


def test_a_study_leaves_a_table_and_pictures(tmp_path, monkeypatch):
    records = [
        record("kfac", 0, 10, 4.0),
        record("kfac", 0, 20, 4.0),  # The last one counts.
    ]
    text = report.write("peers", PEERS, records, tmp_path)
    assert (
        "| kfac | 20 |" in text
        and text + "\n" == (tmp_path / "peers.md").read_text()
    )
    for name in ("peers_curves.png", "peers_profile.png"):
        assert (tmp_path / name).stat().st_size > 5000
    other = studies.STUDIES["tied"]
    assert report.write("tied", other, records, tmp_path) == ""
    assert not (tmp_path / "tied.md").exists()

    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(SystemExit, match="peers.md cannot be written"):
        report.write("peers", PEERS, records[:1], tmp_path)
    assert "| kfac | 20 |" in (tmp_path / "peers.md").read_text()
