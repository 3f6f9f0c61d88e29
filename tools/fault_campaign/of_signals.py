"""Signals to a trainer in each of its phases; the run is resumed after it."""

import functools
import os
import resource
import signal
import sys
import time
from pathlib import Path

import keras

from tools.fault_campaign import faults, processes, trained

_SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")


def _once(owner, name, harm, count=1):
    """Has a function do harm first, in its call of this number."""
    function, calls = getattr(owner, name), []

    def harmful(*args, **more):
        calls.append(None)
        if len(calls) == count:
            harm()
        return function(*args, **more)

    setattr(owner, name, harmful)


def _phases() -> dict[str, tuple]:
    """Returns what is called in each phase of a run, and which time."""
    from trainers import evaluation, files

    batch_end = keras.callbacks.CallbackList, "on_train_batch_end"
    return {
        "tracing": (keras.Model, "train_step", 1),
        "an update": (*batch_end, 2),
        "the last update of a part": (*batch_end, 3),
        "the first update of a part": (*batch_end, 4),
        "evaluation": (evaluation.Evaluation, "__call__", 1),
        "the write of a checkpoint": (os, "fsync", 1),
        "the second checkpoint": (os, "fsync", 2),
        "the write of the log": (files.os, "replace", 2),
        "the write of the model": (keras.Model, "save", 3),
    }


def _ended(folder, phase, name, times=1):
    """The run ends in order, or at once, and goes on to the same state."""
    run, sent = folder / "run", folder / "sent"
    number = getattr(signal, name)
    flags = trained.KFAC if phase == "an update" else ()

    def before():
        owner, function, count = _phases()[phase]

        def harm():
            sent.touch()
            for _ in range(times):
                os.kill(os.getpid(), number)
                time.sleep(0.01)

        _once(owner, function, harm, count)

    trained.whole(folder, *flags)
    ending = trained.train(run, *flags, before=before)
    assert sent.exists(), f"The run never came to {phase}."
    assert ending.kind != "hung", ending
    if name == "SIGKILL":
        assert "exit status -9" in ending.said, ending
    assert "Traceback" not in ending.said, ending.said
    if name != "SIGKILL" and times == 1 and phase == "an update":
        assert "go on with --resume" in ending.said, ending
    processes.demand(trained.train(run, *flags, "--resume"))
    trained.assert_whole(run, folder, *flags)


for _phase in (
    "tracing",
    "an update",
    "the last update of a part",
    "the first update of a part",
    "evaluation",
    "the write of a checkpoint",
    "the second checkpoint",
    "the write of the log",
    "the write of the model",
):
    for _name in _SIGNALS:
        faults.add(
            "signals",
            f"{_name} in {_phase}",
            functools.partial(_ended, phase=_phase, name=_name),
            long=(_phase, _name)
            not in (
                ("an update", "SIGTERM"),
                ("the write of a checkpoint", "SIGKILL"),
            ),
        )
faults.add(
    "signals",
    "two SIGTERM in an update",
    functools.partial(_ended, phase="an update", name="SIGTERM", times=2),
    long=True,
)


@faults.fault("signals", long=True)
def stopped_and_continued(folder):
    """By Ctrl-Z and fg: nothing happens."""
    run = folder / "run"
    trained.whole(folder)
    process = processes.Process(trained.command(run), folder / "stopped.txt")
    try:
        time.sleep(3)
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(process.pid, signal.SIGCONT)
        ending = process.wait()
    finally:
        process.kill()
    processes.demand(ending)
    trained.assert_whole(run, folder)


# The system around a trainer.


def _limit(kind, number):
    return lambda: resource.setrlimit(kind, (number, number))


@faults.fault(
    "system", refused="cannot (be written|write).*(whole|give)", long=True
)
def no_space_from_the_start(folder):
    processes.demand(
        trained.train(folder / "run", before=_limit(resource.RLIMIT_FSIZE, 0))
    )


@faults.fault(
    "system", refused="00000006.keras.*cannot be written.*whole", long=True
)
def no_space_for_a_checkpoint(folder):
    """What was whole stays whole, and the run goes on where there is space."""
    run = trained.copy(folder, 3)
    ending = trained.train(
        run, "--resume", before=_limit(resource.RLIMIT_FSIZE, 100_000)
    )
    assert (run / trained.MIDDLE).exists()
    trained.resume(run, folder)
    processes.demand(ending)


def _to(path):
    def before():
        os.dup2(os.open(path, os.O_WRONLY), 1)

    return before


@faults.fault("system", refused="stdout.*(whole|resume)", either=True)
def stdout_is_full(folder):
    """A run that finishes is not lost for a line that cannot be printed."""
    run = folder / "run"
    trained.whole(folder)
    processes.demand(trained.train(run, "--verbose=2", before=_to("/dev/full")))
    trained.assert_whole(run, folder)


@faults.fault("system", long=True)
def stdin_stdout_are_closed(folder):
    def before():
        os.close(0)
        os.close(1)
        sys.stdin = sys.stdout = None  # As Python has them then.

    run = folder / "run"
    trained.whole(folder)
    processes.demand(trained.train(run, before=before))
    trained.assert_whole(run, folder)


for _name, _place in {
    "of no disk": "/proc/run",
    "in a file": "/dev/null/run",
    "that is a file": "/dev/null",
}.items():
    faults.add(
        "system",
        f"model_dir {_name}",
        functools.partial(
            lambda folder, place: processes.demand(
                processes.run(trained.command(place), folder / "run.txt")
            ),
            place=_place,
        ),
        refused=f"--model_dir={_place}: cannot write there.*give a directory",
    )


def _descriptors(folder, number):
    run = folder / "run"
    trained.whole(folder)
    processes.demand(
        trained.train(run, before=_limit(resource.RLIMIT_NOFILE, number))
    )
    trained.assert_whole(run, folder)


faults.add(
    "system",
    "40 file descriptors",
    functools.partial(_descriptors, number=40),
    long=True,
)
faults.add(
    "system",
    "12 file descriptors",
    functools.partial(_descriptors, number=12),
    refused="allow more, as by ulimit|file descriptors",
    either=True,
    long=True,
)


@faults.fault("system", long=True)
def a_clock_that_jumps_back_an_hour(folder):
    """No time in the log is negative, or an hour."""
    import json

    def before():
        now, calls = time.time, []

        def jumping():
            calls.append(None)
            return now() - 3600 * (len(calls) % 2)

        time.time = jumping

    run = folder / "run"
    trained.whole(folder)
    processes.demand(trained.train(run, before=before))
    trained.assert_whole(run, folder)
    for line in (run / "log.jsonl").read_text().splitlines():
        assert 0 <= json.loads(line)["seconds"] < 600
    assert " -" not in Path(folder / "run_output.txt").read_text()


@faults.fault("system", long=True)
def the_working_directory_is_gone(folder):
    def before():
        os.mkdir(folder / "gone")
        os.chdir(folder / "gone")
        os.rmdir(folder / "gone")

    run = folder / "run"
    trained.whole(folder)
    processes.demand(trained.train(run, before=before))
    trained.assert_whole(run, folder)


def _two(folder, resumed):
    """Starts two jobs in one folder within a second."""
    run = folder / "run"
    trained.whole(folder)
    if resumed:
        run = trained.copy(folder, 3)
    jobs = [
        processes.Process(
            trained.command(run, *(["--resume"] if resumed else [])),
            folder / f"job_{i}.txt",
        )
        for i in range(2)
    ]
    try:
        endings = [job.wait() for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    trained.assert_whole(run, folder)
    endings.sort(key=lambda e: e.kind != "returned")
    processes.demand(endings[0])
    processes.demand(endings[1])


for _name, _resumed in {"start": False, "go on": True}.items():
    faults.add(
        "system",
        f"two jobs {_name} in one folder",
        functools.partial(_two, resumed=_resumed),
        refused="another job runs in it; wait until it has ended",
        long=True,
    )
