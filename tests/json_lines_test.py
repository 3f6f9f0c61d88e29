"""Files of JSON lines: what a kill or a hand leaves in them."""

import errno

import pytest

from tools import forms, json_lines


def check(record):
    forms.check(record, {"n": int})


def test_whole_lines_stay_as_they_are(tmp_path):
    """Also where a kill has cut the last one short."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n":  1}\n{"n": 2}\n{"n": 3')
    lines = json_lines.Lines(path, check)
    assert lines.records == [{"n": 1}, {"n": 2}]
    assert path.read_bytes() == b'{"n":  1}\n{"n": 2}\n'
    lines.add({"n": 4})
    assert path.read_bytes() == b'{"n":  1}\n{"n": 2}\n{"n": 4}\n'
    with pytest.raises(ValueError, match="another command runs it"):
        json_lines.Lines(path, check)


def test_what_cannot_be_read_is_named(tmp_path):
    assert json_lines.read(tmp_path / "none", check) == []
    with pytest.raises(ValueError, match=f"{tmp_path}: Is a directory"):
        json_lines.read(tmp_path, check)
    path = tmp_path / "lines.jsonl"
    path.write_text('{"n": 1}\n{"n": "2"}\n')
    message = (
        r"line 2 is damaged \(\['n'\] is '2', not a whole number\); remove"
    )
    with pytest.raises(ValueError, match=f"{path}: {message}"):
        json_lines.Lines(path, check)


def test_a_full_disk_is_named_and_costs_one_line(tmp_path, monkeypatch):
    path = tmp_path / "lines.jsonl"
    lines = json_lines.Lines(path, check)
    lines.add({"n": 1})
    write = json_lines.os.write

    def full(file, content):
        """The disk has room for three bytes more."""
        if len(content) < len('{"n": 2}\n'):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content[:3])

    with monkeypatch.context() as context:
        context.setattr(json_lines.os, "write", full)
        message = f"{path} cannot be written .No space left on device.: make"
        with pytest.raises(SystemExit, match=message):
            lines.add({"n": 2})
    assert path.read_bytes() == b'{"n": 1}\n{"n'
    del lines
    again = json_lines.Lines(path, check)
    assert again.records == [{"n": 1}]
    again.add({"n": 3})
    assert path.read_bytes() == b'{"n": 1}\n{"n": 3}\n'


def test_what_is_nested_too_deep_is_named(tmp_path):
    path = tmp_path / "lines.jsonl"
    for depth in (900, 5000, 100_000):
        path.write_text(f'{{"n": {"[" * depth}{"]" * depth}}}\n')
        with pytest.raises(ValueError, match=f"{path}: line 1 is damaged"):
            json_lines.Lines(path, check)
