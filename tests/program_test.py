"""How a trainer ends by an error that is no fault of the program."""

import errno

import pytest

from tfkfac.distributed.roll_call import RanksError
from trainers import program


@pytest.mark.parametrize(
    "error, sentence",
    [
        (RanksError("Rank 1 does not answer"), "Rank 1 does not answer"),
        (OSError(errno.ENOSPC, "No space"), "stdout is full.*--resume"),
    ],
)
def test_a_sentence_in_place_of_a_traceback(error, sentence):
    with pytest.raises(SystemExit, match=sentence), program.in_a_sentence():
        raise error


@pytest.mark.parametrize("error", [RuntimeError("a"), OSError(errno.EIO, "b")])
def test_other_errors_keep_their_traceback(error):
    with pytest.raises(type(error)) as caught, program.in_a_sentence():
        raise error
    assert caught.value is error
