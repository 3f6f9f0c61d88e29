"""Trainers on several ranks that differ, stop or end."""

import functools
import os
import signal
import time

from tools.fault_campaign import faults, processes, trained


def _train(folder, run, flags=lambda rank: (), harm=None, count=2, steps=6):
    """Trains on ranks, each with flags of its own; returns the endings."""

    def of_rank(rank):
        trained.command(run, f"--steps={steps}", *flags(rank))()

    return processes.ranks(
        count, of_rank, folder, started=harm or (lambda processes: None)
    )


def _flags(folder, name, values):
    pattern = rf"rank 1.*--{name}.*rank 0"
    endings = _train(
        folder, folder / "run", lambda rank: (f"--{name}={values[rank]}",)
    )
    processes.joint(endings, pattern)


for _name, _values in {
    "seed": (0, 1),
    "learning_rate": (0.1, 0.2),
    "augment": (0, 1),
    "data_dir": ("/tmp/a", "/tmp/b"),
    "steps": (3, 6),
    "model": ("small_cnn", "small_cnn_bn"),
}.items():
    faults.add(
        "trainers on ranks",
        f"another --{_name} on each",
        functools.partial(_flags, name=_name, values=_values),
        refused=rf"rank 1.*--{_name}.*rank 0",
        long=True,
    )


def _signalled(folder, number, rank=1, after=8.0, said=""):
    """Sends a signal to a rank in a long run."""

    def harm(of_ranks):
        time.sleep(after)
        os.kill(of_ranks[rank].pid, number)

    endings = _train(folder, folder / "run", harm=harm, steps=2000)
    kinds = [ending.kind for ending in endings]
    assert "returned" not in kinds, kinds
    if number == signal.SIGTERM:
        # In order: both ranks come to an end, and the run goes on.
        trained.train(folder / "run", "--steps=2000", "--dry_run")
        assert all("--resume" in e.said or not e.said for e in endings), endings
        return
    processes.joint([endings[1 - rank]], said)


faults.add(
    "trainers on ranks",
    "SIGTERM to one",
    functools.partial(_signalled, number=signal.SIGTERM),
    long=True,
)
faults.add(
    "trainers on ranks",
    "SIGKILL to one",
    functools.partial(_signalled, number=signal.SIGKILL),
    refused="another rank has ended",
    long=True,
)
faults.add(
    "trainers on ranks",
    "SIGSTOP of one",
    functools.partial(_signalled, number=signal.SIGSTOP, said="[Rr]ank 1"),
    refused="[Rr]ank 1.*(answer|respond)",
    long=True,
)


@faults.fault("trainers on ranks", long=True)
def resumed_on_another_number(folder):
    """Three updates on two ranks, then three on one: to 1e-3."""
    run = folder / "run"
    processes.joint(_train(folder, run, steps=3))
    processes.demand(trained.train(run, "--resume"))
    trained.assert_whole(run, folder, rtol=1e-2)


@faults.fault(
    "trainers on ranks",
    refused="another rank has ended|damaged|corrupt",
    long=True,
)
def a_damaged_checkpoint(folder):
    run = trained.copy(folder, 3)
    os.truncate(run / trained.MIDDLE, 5000)
    processes.joint(_train(folder, run, lambda rank: ("--resume",)), "corrupt")
