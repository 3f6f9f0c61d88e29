"""Text as sequences of tokens, and the files that rank 0 makes for all."""

import errno
import json
import shutil
import threading
import time

import numpy as np
import pytest
import small_data

from trainers.data import once, text, tokens

TEXT = {"vocabulary": 300, "length": 16}


def load(name, data_dir, **options):
    return tokens.load(name, str(data_dir), tokens.Options(**options))


@pytest.fixture(scope="module")
def lm1b(tmp_path_factory):
    """A directory with a small lm1b, and its sentences."""
    path = tmp_path_factory.mktemp("data")
    return path, small_data.write(path, "lm1b")


@pytest.fixture(scope="module")
def pydocs(tmp_path_factory):
    """A directory with the tokens of pydocs, to be read only."""
    path = tmp_path_factory.mktemp("pydocs")
    load("pydocs", path, **TEXT)
    return path


@pytest.fixture
def own_pydocs(pydocs, tmp_path):
    """A copy of it."""
    return shutil.copytree(pydocs, tmp_path / "own")


@pytest.fixture
def hand_made(tmp_path):
    """Three sentences: 5 6 | 7 | 8 9 4, each ended by 1."""
    np.array([1, 5, 6, 1, 7, 1, 8, 9, 4, 1], "uint16").tofile(
        tmp_path / "train.tokens"
    )
    np.array([4, 6, 10], "int64").tofile(tmp_path / "train.ends")
    return tmp_path


def test_packed_sequences_by_hand(hand_made):
    found = tokens.Sequences(
        hand_made, "train", 0, 3, tokens.Options(vocabulary=10, length=4)
    )
    x, y = found.inputs_and_targets([1, 0])
    assert len(found) == 2 and x.dtype == y.dtype == np.int32
    np.testing.assert_array_equal(x, [[7, 1, 8, 9], [1, 5, 6, 1]])
    np.testing.assert_array_equal(y, [[1, 8, 9, 4], [5, 6, 1, 7]])
    # Of 10 tokens, 9 are targets.
    five = tokens.Options(vocabulary=10, length=5)
    assert len(tokens.Sequences(hand_made, "train", 0, 3, five)) == 1


def test_padded_sequences_by_hand(hand_made):
    options = tokens.Options(vocabulary=10, length=3, packed=False)
    found = tokens.Sequences(hand_made, "train", 0, 3, options)
    x, y = found.inputs_and_targets([0, 1, 2])
    np.testing.assert_array_equal(x, [[1, 5, 6], [1, 7, 0], [1, 8, 9]])
    np.testing.assert_array_equal(y, [[5, 6, 1], [7, 1, 0], [8, 9, 4]])
    rest = tokens.Sequences(hand_made, "train", 1, 3, options)
    x, _ = rest.inputs_and_targets([1, 0])
    assert len(rest) == 2
    np.testing.assert_array_equal(x, [[1, 8, 9], [1, 7, 0]])


@pytest.mark.parametrize("packed", [True, False])
def test_tokens_are_the_text_on_disk(packed, lm1b):
    path, written = lm1b
    found = load("lm1b", path, vocabulary=200, length=64, packed=packed)
    assert found.classes == 200 and found.input_shape == (64,)
    processor = text.tokenizer(found.directory)
    assert processor.vocab_size() == 200
    sentences = written["test"][0]
    ((_, y, w),) = found.evaluation("test", 200)
    stream = np.asarray(y)[np.asarray(w) > 0]
    parts = np.split(stream, np.flatnonzero(stream == text.END) + 1)
    read = processor.decode([part.tolist() for part in parts if len(part)])
    if packed:  # The last sequence that is left out cuts a sentence.
        assert len(read) > 20 and set(read[:-1]) <= set(sentences)
    else:
        assert found.train_size == 400
        assert sorted(read) == sorted(sentences)


def test_sentencepiece_of_too_many_tokens(tmp_path):
    with pytest.raises(SystemExit, match="--vocabulary=32768: pydocs .*value"):
        load("pydocs", tmp_path)
    assert not list(tmp_path.iterdir())


def test_tokens_of_another_vocabulary(own_pydocs):
    found = load("pydocs", own_pydocs, **TEXT)
    meta = found.directory / "meta.json"
    meta.write_text(meta.read_text().replace("300", "299"))
    with pytest.raises(SystemExit, match="--vocabulary=300: .*meta.json is of"):
        load("pydocs", own_pydocs, **TEXT)
    meta.write_text(meta.read_text().replace("299", "300"))
    ends = found.directory / "train.ends"
    ends.write_bytes(ends.read_bytes()[:-8])
    with pytest.raises(SystemExit, match="train.ends: has .* bytes"):
        load("pydocs", own_pydocs, **TEXT)
    ends.write_bytes(ends.read_bytes() + np.int64(10**9).tobytes())
    with pytest.raises(SystemExit, match="train.ends: does not lead through"):
        load("pydocs", own_pydocs, **TEXT)
    deep = "[" * 9999
    for form in ("[]", '{"vocabulary": 300, "splits": {"train": 3}}', deep):
        meta.write_text(form)
        with pytest.raises(SystemExit, match="cannot be read .*; remove"):
            load("pydocs", own_pydocs, **TEXT)
    meta.write_text("{")
    with pytest.raises(SystemExit, match="cannot be read .*; remove"):
        load("pydocs", own_pydocs, **TEXT)


def test_a_file_that_is_not_as_it_was_written_is_named(own_pydocs):
    """By its digest: a flipped byte, a file that is cut and padded."""
    found = load("pydocs", own_pydocs, **TEXT)
    for name, place in (
        ("train.tokens", -9),
        ("train.tokens", 1000),
        ("test.tokens", 20),
        ("tokenizer.model", -1),
    ):
        file = found.directory / name
        before = file.read_bytes()
        after = bytearray(before)
        after[place] ^= 1
        if place == 1000:  # All that follows is gone.
            after[place:] = bytes(len(before) - place)
        file.write_bytes(after)
        message = f"({file}: is damaged|cannot be read).*; remove"
        with pytest.raises(SystemExit, match=message):
            load("pydocs", own_pydocs, **TEXT)
        file.write_bytes(before)
    meta = found.directory / "meta.json"
    saved = json.loads(meta.read_text())
    del saved["splits"]["test"]
    meta.write_text(json.dumps(saved))
    message = f"{meta}: has no split 'test'; remove {found.directory}, and it"
    with pytest.raises(SystemExit, match=message):
        load("pydocs", own_pydocs, **TEXT)


def test_digests_are_taken_once(pydocs, monkeypatch):
    load("pydocs", pydocs, **TEXT)
    monkeypatch.setattr(text.hashlib, "file_digest", pytest.fail)
    load("pydocs", pydocs, **TEXT)


def test_too_many_open_files_are_no_damage(pydocs, monkeypatch):
    def too_many(path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(text, "tokenizer", too_many)
    with pytest.raises(OSError, match="Too many"):
        load("pydocs", pydocs, **TEXT)


def test_tokens_of_other_data(lm1b, tmp_path, capsys):
    """A --text_dir that a smaller copy of the data has filled.

    Long ago, when there were no digests: there is a warning of that.
    """
    options = {"vocabulary": 200, "length": 16, "text_dir": str(tmp_path)}
    found = load("lm1b", lm1b[0], **options)
    meta = found.directory / "meta.json"
    saved = json.loads(meta.read_text())
    count = saved["splits"]["test"]["sentences"]
    saved["splits"]["test"]["sentences"] = count - 1
    ends = np.fromfile(found.directory / "test.ends", "int64")[:-1]
    ends[-1] = saved["splits"]["test"]["tokens"]
    ends.tofile(found.directory / "test.ends")
    del saved["digests"]
    meta.write_text(json.dumps(saved))
    for _ in range(2):
        message = f"other data, with {count - 1} and"
        with pytest.raises(SystemExit, match=message):
            load("lm1b", lm1b[0], **options)
    said = capsys.readouterr().err
    assert said.count(f"{found.directory}: was made without digests") == 1


def test_whether_tokens_are_there(lm1b, tmp_path):
    path = lm1b[0]
    options = tokens.Options(vocabulary=220, length=16, text_dir=str(tmp_path))
    assert not tokens.prepared("lm1b", str(tmp_path), options)
    assert not tokens.prepared("lm1b", str(path), options)
    tokens.load("lm1b", str(path), options)
    assert tokens.prepared("lm1b", str(path), options)


def test_damaged_tokens_are_named(lm1b):
    found = load("lm1b", lm1b[0], vocabulary=250, length=16)
    file = found.directory / "train.tokens"
    content = np.fromfile(file, "uint16")
    content[1::3] = 59_999
    content.tofile(file)
    message = f"{file}: is damaged: tokens are from 0 to 249, and one is 59999"
    message += f"; remove {found.directory}, and it is made again"
    with pytest.raises(ValueError, match=message):
        found.sequences("train").inputs_and_targets(np.arange(2))


def test_a_full_disk_is_named(tmp_path):
    def make(path):
        (path / "half").touch()
        raise OSError("4096 requested and 0 written")  # As NumPy says it.

    message = f"{tmp_path}/made: cannot be written .4096 req.*; make room, or"
    with pytest.raises(SystemExit, match=message):
        once.made_once(tmp_path / "made", make)
    assert not list(tmp_path.iterdir())


def test_other_ranks_wait_for_rank_0(tmp_path, monkeypatch):
    path = tmp_path / "made"
    monkeypatch.setenv("HOROVOD_RANK", "1")
    monkeypatch.setattr(once, "SECONDS", 0.3)
    with pytest.raises(SystemExit, match="made: rank 0 has not made it within"):
        once.made_once(path, pytest.fail)
    monkeypatch.setattr(once, "SECONDS", 30)
    found = []
    polls, sleep = threading.Event(), time.sleep
    monkeypatch.setattr(time, "sleep", lambda s: polls.set() or sleep(s))
    waiting = threading.Thread(
        target=lambda: found.append(once.made_once(path, pytest.fail))
    )
    waiting.start()
    assert polls.wait(10)
    monkeypatch.setenv("HOROVOD_RANK", "0")
    with pytest.raises(ZeroDivisionError):
        once.made_once(path, lambda work: (work / "half").touch() or 1 / 0)
    assert not list(tmp_path.iterdir()) and waiting.is_alive()
    once.made_once(path, lambda work: (work / "whole").touch())
    waiting.join(timeout=10)
    assert found == [path] and list(tmp_path.iterdir()) == [path]
    assert [file.name for file in path.iterdir()] == ["whole"]


@pytest.mark.parametrize("option", ["vocabulary", "length"])
def test_bad_options(option):
    with pytest.raises(ValueError, match=f"{option}=0: must be greater than 0"):
        tokens.Options(**{option: 0})


def test_unknown_text():
    with pytest.raises(SystemExit, match="=x: choose from pydocs, lm1b$"):
        tokens.load("x")


def test_sequences_longer_than_the_text(lm1b):
    found = load("lm1b", lm1b[0], vocabulary=300, length=10**6)
    with pytest.raises(SystemExit, match="'train' has no sequence of 1000000"):
        found.train(2, 0)
