"""Trainers on several ranks that differ, stop or end."""

import functools
import os
import signal

import numpy as np

from tools.fault_campaign import faults, processes, trained

_MANY = 60  # Steps, more than there are before a signal is heeded.


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
    "data_dir": ("data/first", "data/second"),
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


def _signalled(folder, number, steps=2000):
    """Sends a signal to rank 1, after the first checkpoint of a run."""
    run = folder / "run"

    def harm(of_ranks):
        while not (run / trained.MIDDLE).exists():
            assert of_ranks[0].wait(0.05) is None, of_ranks[0].wait()
        os.kill(of_ranks[1].pid, number)

    endings = _train(folder, run, harm=harm, steps=steps)
    kinds = [ending.kind for ending in endings]
    assert "returned" not in kinds, kinds
    return endings


@faults.fault("trainers on ranks", long=True)
def SIGTERM_to_one(folder):  # noqa: N802
    """Both ranks end in order, and the run goes on as if nothing had been."""
    first, second = _signalled(folder, signal.SIGTERM, steps=_MANY)
    assert "go on with --resume" in first.said, first
    assert second.kind == "raised", second
    found = []
    for name, flags in (("run", ["--resume"]), ("whole", [])):
        run = folder / name
        processes.joint(_train(folder, run, lambda _, f=flags: f, steps=_MANY))
        found.append(trained.weights(run / f"checkpoints/{_MANY:08d}.keras"))
    for name, value in found[1].items():
        np.testing.assert_array_equal(found[0][name], value, err_msg=name)


faults.add(
    "trainers on ranks",
    "SIGKILL to one",
    lambda folder: processes.joint(_signalled(folder, signal.SIGKILL)[:1]),
    refused="another rank has ended|Rank 1 does not answer",
    long=True,
)
faults.add(
    "trainers on ranks",
    "SIGSTOP of one",
    lambda folder: processes.joint(_signalled(folder, signal.SIGSTOP)[:1]),
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
    refused="00000003.keras is corrupt.*remove",
    long=True,
)
def a_damaged_checkpoint(folder):
    run = trained.copy(folder, 3)
    os.truncate(run / trained.MIDDLE, 5000)
    processes.joint(_train(folder, run, lambda rank: ("--resume",)), "corrupt")
