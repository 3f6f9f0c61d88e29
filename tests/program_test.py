"""How a trainer ends by an error that is no fault of the program."""

import errno

import pytest

from tfkfac.distributed.roll_call import RanksError
from trainers import program


def test_ranks_end_with_a_sentence_in_place_of_a_traceback():
    said = "Rank 1 does not answer"
    with pytest.raises(SystemExit, match=said), program.in_a_sentence():
        raise RanksError(said)


def test_too_many_files():
    error = OSError(errno.EMFILE, "Too many open files", "data.npz")
    said = "^data.npz cannot be opened, as too many are open; allow more"
    with pytest.raises(SystemExit, match=said), program.in_a_sentence():
        raise error


def test_other_errors_keep_their_traceback():
    error = RuntimeError("another")
    with pytest.raises(RuntimeError) as caught, program.in_a_sentence():
        raise error
    assert caught.value is error
