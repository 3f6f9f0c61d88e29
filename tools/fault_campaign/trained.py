"""A trainer's run of six updates, to cut short, to spoil and to go on with."""

import functools
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from tools.fault_campaign import processes
from tools.fault_campaign.faults import Ending

ARGV = (
    "--dataset=digits",
    "--steps=6",
    "--evaluation_period=3",
    "--batch_size=240",
    "--keep_checkpoints=-1",
    "--verbose=0",
    "--optimizer=momentum",  # Of which graphs are quick.
)
KFAC = ("--optimizer=kfac",)
LAST = "checkpoints/00000006.keras"
MIDDLE = "checkpoints/00000003.keras"


def command(run: Path | str, *more: str) -> Callable[[], None]:
    """Returns the function that is the trainer's program."""
    argv = (*ARGV, f"--model_dir={run}", *more)
    return functools.partial(processes.program, "trainers.mnist", *argv)


def train(
    run: Path,
    *more: str,
    before: Callable[[], None] = lambda: None,
    environment: Mapping[str, str] | None = None,
) -> Ending:
    """Returns how the program ended that trains, or goes on, in a folder.

    Args:
        run: The run's folder.
        *more: Flags.
        before: Called in the program's process, to do it harm.
        environment: Variables that the process has.
    """

    def start():
        before()
        command(run, *more)()

    output = run.parent / f"{run.name}_output.txt"
    output.unlink(missing_ok=True)
    return processes.run(start, output, environment=environment)


def whole(folder: Path, *flags: str) -> Path:
    """Returns the folder of a run that nothing was done to; not to be changed.

    All faults of a campaign share it: the first one makes it.
    """
    made = folder.parent / f"whole_run{'_'.join(flags)}"
    if not made.exists():
        work = folder / "whole_run"
        processes.demand(train(work, *flags))
        os.rename(work, made)
    return made


def copy(folder: Path, steps: int = 6, flags: Sequence[str] = ()) -> Path:
    """Returns a copy of the whole run, as it was after 3 updates or 6."""
    run = folder / "run"
    shutil.copytree(whole(folder, *flags), run)
    if steps == 3:
        (run / LAST).unlink()
        for name in ("model.keras", "summary.json"):
            (run / name).unlink()
    return run


def weights(path: Path) -> dict[str, np.ndarray]:
    """Returns what a .keras file holds of model and optimizer, by name."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with zipfile.ZipFile(path) as file:
        store = io.BytesIO(file.read("model.weights.h5"))
    with h5py.File(store) as file:
        file.visititems(visit)
    return found


def assert_whole(
    run: Path, folder: Path, *flags: str, rtol: float = 0.0
) -> None:
    """Raises AssertionError where a run did not come to the same state."""
    own, other = weights(run / LAST), weights(whole(folder, *flags) / LAST)
    assert own.keys() == other.keys()
    for name, value in other.items():
        np.testing.assert_allclose(
            own[name], value, rtol, rtol * np.abs(value).max(), err_msg=name
        )
    assert (run / "summary.json").exists() and (run / "model.keras").exists()
    left = [p.name for p in run.rglob("partial_*")]
    assert not left, left


def resume(run: Path, folder: Path, *flags: str) -> None:
    """Goes on with a run; it comes to the same state, or is refused."""
    processes.demand(train(run, "--resume", *flags))
    assert_whole(run, folder, *flags)


def flip(path: Path, place: int) -> None:
    """Changes a bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)
