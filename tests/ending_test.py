"""What a rank does at the end of its program; on ranks: distributed_test."""

import sys
import threading
import time

import pytest

from tfkfac.distributed import ending


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    found = []
    monkeypatch.setattr(ending.atexit, "register", found.append)
    return found


def test_ranks_meet_when_the_program_ends(registered):
    met = threading.Event()
    made = ending.Ending(met.set)
    time.sleep(0.05)
    assert registered == [made.wait] and not met.is_set()
    assert made.wait() and met.is_set()


def test_no_rank_waits_for_ever():
    made = ending.Ending(lambda: time.sleep(5), seconds=0.1)
    begin = time.monotonic()
    assert not made.wait() and time.monotonic() - begin < 2


def test_where_horovod_has_stopped_nobody_is_waited_for():
    def meet():
        raise RuntimeError("Horovod has been shut down.")

    assert ending.Ending(meet).wait()


def test_a_forked_process_does_not_wait(monkeypatch):
    made = ending.Ending(lambda: None)
    monkeypatch.setattr(ending.os, "getpid", lambda: -1)
    assert not made.wait()


def test_a_program_that_failed_does_not_wait(monkeypatch):
    monkeypatch.setattr(sys, "last_value", ValueError(), raising=False)
    met = threading.Event()
    assert not ending.Ending(met.set).wait() and not met.is_set()
