"""The end of a program on several ranks."""

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable

PATIENCE = 5.0  # Seconds.


class Ending:
    """Has a process wait for the other ranks when its program ends.

    Horovod stops on all ranks when one of them ends. Process sets come to the
    end of a step one after the other, and the ranks of those that are still in
    it would fail.

    Args:
        meet: A collective of all ranks; what it raises is the end, too.
        seconds: How long a rank waits at most.
    """

    def __init__(
        self, meet: Callable[[], object], seconds: float = PATIENCE
    ) -> None:
        self._meet, self._seconds = meet, seconds
        self._process = os.getpid()
        self._ended, self._met = threading.Event(), threading.Event()
        # Begun here, as a program that ends can begin no thread.
        threading.Thread(target=self._run, daemon=True).start()
        atexit.register(self.wait)

    def _run(self) -> None:
        self._ended.wait()
        # Where Horovod has stopped, nobody is to be waited for.
        with contextlib.suppress(Exception):
            self._meet()
        self._met.set()

    def wait(self) -> bool:
        """Returns whether the ranks have met.

        A program that ends with an exception does not wait, so that the
        others are told at once; one that ends by `sys.exit` is not known from
        one that is through. Neither does a process that this one has forked.
        """
        if hasattr(sys, "last_value") or os.getpid() != self._process:
            return False
        self._ended.set()
        return self._met.wait(self._seconds)
