"""Processes that are forked, watched and ended.

The campaign's own process imports TensorFlow and runs no operation, so that a
fork of it is a process of its own without the seconds of the import.
"""

import contextlib
import math
import os
import pickle
import re
import runpy
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tools.fault_campaign.faults import (
    Ending,
    HungError,
    RefusedError,
    TracebackError,
)

_GRACE = 15.0  # Seconds that ranks have to end after the first that failed.
_TRACEBACK = "a traceback: "  # How an ending by one begins.


class Process:
    """A forked process that runs a function.

    Args:
        function: Called without arguments.
        output: The file that stdout and stderr go to.
        environment: Variables to set.
        leads: Whether it leads a session, which `kill` ends as a whole.
    """

    def __init__(
        self,
        function: Callable[[], None],
        output: Path,
        environment: Mapping[str, str] | None = None,
        leads: bool = False,
    ):
        self.output, self._leads = output, leads
        self._status: int | None = None
        self._ending: Ending | None = None
        # No file: a fault may be that none can be written.
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(function, environment or {}, write)
        os.close(write)

    def _run(self, function, environment, write):
        try:
            if self._leads:
                os.setsid()
            # As in a process of a shell, whatever the campaign's own has.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            file = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(file, stream)
            os.environ.update(environment)
            ending = _ending_of(function, self.output)
            with contextlib.suppress(OSError, AttributeError):
                sys.stdout.flush()  # It may be closed, or full.
            os.write(write, pickle.dumps(ending))
        finally:
            # No joining of what it has started: `kill` ends that.
            os._exit(0)

    def wait(self, seconds: float | None = None) -> Ending | None:
        """Returns how it has ended; None where it has not after so long."""
        end = math.inf if seconds is None else time.monotonic() + seconds
        while self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
                self._ending = self._received()
            elif time.monotonic() > end:
                return None
            else:
                time.sleep(0.02)
        return self._ending

    def _received(self) -> Ending:
        # Others that it started may hold the pipe: there may come no end.
        os.set_blocking(self._read, False)
        try:
            content = os.read(self._read, 1 << 16)
        except BlockingIOError:
            content = b""
        os.close(self._read)
        if content:
            return pickle.loads(content)
        said = f"exit status {self._status}: {tail(self.output)}"
        return Ending("died", said)

    def kill(self) -> None:
        """Ends it, and with a session all that is in it."""
        try:
            if self._leads:
                os.killpg(self.pid, signal.SIGKILL)
            elif self._status is None:
                os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.wait()


def tail(path: Path, characters: int = 700) -> str:
    """Returns the end of a file of output, without TensorFlow's own lines."""
    try:
        text = path.read_text(errors="replace")
    except OSError:  # There is none, or no file can be opened.
        text = ""
    noise = ("WARNING: All log", "I0000", "E0000", "W0000", "UserWarning")
    lines = [x for x in text.splitlines() if not any(n in x for n in noise)]
    return "\n".join(lines)[-characters:]


def _ending_of(function, output) -> Ending:
    try:
        function()
    except AssertionError as error:
        return Ending("asserted", str(error)[-700:])
    except SystemExit as end:
        if isinstance(end.code, str):
            return Ending("raised", end.code)
        if end.code:
            sys.stderr.flush()
            return Ending("raised", tail(output))
    except RefusedError as error:
        return Ending("raised", str(error))
    except HungError as error:
        return Ending("hung", str(error))
    except TracebackError as error:
        return Ending("died", f"{_TRACEBACK}{error}"[:4000])
    except KeyboardInterrupt:
        return Ending("died", "KeyboardInterrupt")
    except BaseException as error:
        said = getattr(error, "message", None) or str(error)
        return Ending("raised", f"{type(error).__name__}: {said}"[:4000])
    return Ending("returned")


def program(module: str, *argv: str) -> None:
    """Runs `python -m module argv` in this process.

    Raises:
        SystemExit: As the program does.
        TracebackError: It ends with one, which is no clear refusal.
    """
    sys.argv = [module, *map(str, argv)]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Exception as error:
        raise TracebackError(f"{type(error).__name__}: {error}") from error


def run(
    function: Callable[[], None],
    output: Path,
    seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ending:
    """Returns how a function ended in a process of its own.

    Without a limit: the process of the fault has one, and its session ends.
    """
    process = Process(function, output, environment)
    try:
        return process.wait(seconds) or Ending("hung", tail(output))
    finally:
        process.kill()


def demand(ending: Ending) -> None:
    """Raises what a process has ended with, if it did not return."""
    if ending.kind == "returned":
        return
    if ending.kind == "raised":
        raise RefusedError(ending.said)
    if ending.kind == "hung":
        raise HungError(ending.said)
    assert ending.kind != "asserted", ending.said
    if ending.said.startswith(_TRACEBACK):
        raise TracebackError(ending.said.removeprefix(_TRACEBACK))
    raise RuntimeError(ending.said)


def ranks(
    count: int,
    function: Callable[[int], None],
    folder: Path,
    started: Callable[[Sequence[Process]], None] = lambda processes: None,
) -> list[Ending]:
    """Returns how a function of the rank ended on each rank of a Horovod run.

    As `horovodrun` does it: when one has failed, the others are ended.

    Args:
        count: How many.
        function: Called with the rank.
        folder: For their outputs.
        started: Called with the processes, to do them harm.
    """
    from horovod.runner.common.util import hosts
    from horovod.runner.http.http_server import RendezvousServer

    server = RendezvousServer()
    port = server.start()
    slots = hosts.get_host_assignments(
        hosts.parse_hosts(f"localhost:{count}"), count
    )
    server.init(slots)
    processes = [
        Process(
            lambda rank=rank: function(rank),
            folder / f"rank_{rank}.txt",
            _environment(slot, port),
        )
        for rank, slot in enumerate(slots)
    ]
    try:
        started(processes)
        return _together(processes)
    finally:
        for process in processes:
            process.kill()
        server.stop()


def _environment(slot, port) -> dict[str, str]:
    """Returns the variables of a rank, as `horovodrun` sets them."""
    local = {
        "HOSTNAME": slot.hostname,
        "RANK": slot.rank,
        "SIZE": slot.size,
        "LOCAL_RANK": slot.local_rank,
        "LOCAL_SIZE": slot.local_size,
        "CROSS_RANK": slot.cross_rank,
        "CROSS_SIZE": slot.cross_size,
        "CONTROLLER": "gloo",
        "CPU_OPERATIONS": "gloo",
        "GLOO_IFACE": "lo",
        "GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
        "GLOO_RENDEZVOUS_PORT": port,
        "NUM_NCCL_STREAMS": 1,
    }
    return {f"HOROVOD_{name}": str(value) for name, value in local.items()}


def _together(processes) -> list[Ending]:
    end = math.inf
    endings: list[Ending | None] = [None] * len(processes)
    while None in endings and time.monotonic() < end:
        for i, process in enumerate(processes):
            if endings[i] is None and (ending := process.wait(0.1)):
                endings[i] = ending
                if ending.kind != "returned":
                    end = min(end, time.monotonic() + _GRACE)
    return [e or Ending("died", "ended after another rank") for e in endings]


def joint(endings: Sequence[Ending], pattern: str = "") -> None:
    """Raises what a run on several ranks has ended with, if it failed.

    Args:
        endings: Of the ranks.
        pattern: Of the sentence that counts, whichever rank says it.
    """
    for of_rank in endings:
        if of_rank.kind in ("hung", "asserted"):
            demand(of_rank)
    failed = [e for e in endings if e.kind != "returned"]
    failed.sort(
        key=lambda e: (not re.search(pattern, e.said), e.kind == "died")
    )
    if failed:
        demand(failed[0])
