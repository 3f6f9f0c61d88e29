"""What the launcher tells a process by its environment, and how it is called.

Read before Horovod is imported; of horovodrun, Open MPI, and MPICH or Slurm.
"""

import os
import pathlib
import sys
from collections.abc import Sequence

_SIZES = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_RANKS = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def size() -> int:
    """Returns how many processes were launched, 1 if no launcher tells."""
    return _first(_SIZES, 1)


def rank() -> int:
    """Returns which of them this is, 0 if no launcher tells."""
    return _first(_RANKS, 0)


def on_ranks(command: Sequence[str], ranks: int) -> list[str]:
    """Returns what runs a command in so many processes, by this Python's
    `horovodrun`; the command itself for one."""
    if ranks == 1:
        return list(command)
    horovodrun = pathlib.Path(sys.executable).parent / "horovodrun"
    return [str(horovodrun), "-np", str(ranks), *command]


def _first(names, default):
    found = [os.environ[name] for name in names if name in os.environ]
    return int(found[0]) if found else default
