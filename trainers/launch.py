"""What a program is started with: processes, packages, the same flags on all.

The launcher tells a process by its environment
which it is, before Horovod is imported: horovodrun, Open MPI, MPICH or Slurm.
"""

import contextlib
import errno
import importlib.util
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from trainers import files

_SIZES = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_RANKS = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def size() -> int:
    """Returns how many processes were launched, 1 if no launcher tells."""
    return _first(_SIZES, 1)


def rank() -> int:
    """Returns which of them this is, 0 if no launcher tells."""
    return _first(_RANKS, 0)


def _first(names, default):
    found = [os.environ[name] for name in names if name in os.environ]
    return int(found[0]) if found else default


def on_ranks(command: Sequence[str], ranks: int) -> list[str]:
    """Returns what runs a command in so many processes, by this Python's
    `horovodrun`; the command itself for one."""
    if ranks == 1:
        return list(command)
    horovodrun = pathlib.Path(sys.executable).parent / "horovodrun"
    return [str(horovodrun), "-np", str(ranks), *command]


def installed(package: str) -> bool:
    """Returns whether a package that the library does without is there."""
    return importlib.util.find_spec(package) is not None


def require_package(package: str, extra: str, flag: str) -> None:
    """Exits with the command that installs `package` where it is missing."""
    if not installed(package):
        raise SystemExit(
            f"{flag} needs {package}, which is not installed: "
            f"pip install 'tfkfac[{extra}]'"
        )


def require_same_flags(values: dict[str, Any]) -> None:
    """Exits on all ranks of a launched run where their flags differ.

    Args:
        values: From the flag to the value that this rank was given.
    """
    if size() == 1:
        return  # Without TensorFlow, which is slow to import.
    import tfkfac

    named = {f"--{name}": value for name, value in values.items()}
    require_same(named, tfkfac.init(), "flags")


def require_same(values: dict[str, Any], ranks, what: str) -> None:
    """Exits on all ranks where one has other values than rank 0.

    Ranks that go on with different flags train models of their own, or wait for
    each other in vain.

    Args:
        values: This rank's, by name.
        ranks: A `tfkfac.distributed.communicator.Communicator`.
        what: They are, for the sentence.
    """
    first, *others = ranks.gather_objects(values)
    for number, found in enumerate(others, start=1):
        differences = [
            f"{name} is {found[name]}, on rank 0 it is {first[name]}"
            for name in first
            if found[name] != first[name]
        ]
        if differences:
            raise SystemExit(
                f"rank {number}: {'; '.join(differences)}; give all ranks the "
                f"same {what}"
            )


@contextlib.contextmanager
def in_a_sentence() -> Iterator[None]:
    """Exits with a sentence where an error is of no line of the program."""
    try:
        yield
        if sys.stdout is not None:  # As where it was closed before.
            sys.stdout.flush()  # At the end of the process it is too late.
    except SystemExit:
        _give_up_stdout_if_lost()
        raise
    except OSError as error:
        if error.errno in files.TOO_MANY_FILES:
            raise SystemExit(
                f"{error.filename or 'a file'} cannot be opened, as too many "
                "are open; allow more, as by ulimit -n 1024"
            ) from error
        # Files of a run have sentences of their own, which name them.
        if error.errno not in (errno.ENOSPC, errno.EPIPE):
            raise
        name = "stdout" if _give_up_stdout_if_lost("\n") else "a file"
        raise SystemExit(
            f"{error.filename or name} cannot be written ({error.strerror}): "
            "what was saved is whole, and --resume goes on from there"
        ) from error
    except RuntimeError as error:
        from tfkfac.distributed.roll_call import RanksError

        if not isinstance(error, RanksError):
            raise
        raise SystemExit(str(error)) from error


def _give_up_stdout_if_lost(text: str = "") -> bool:
    """Returns whether stdout cannot be written.

    What it holds then would raise once more when the process ends.

    Args:
        text: Written to it to find out.
    """
    if sys.stdout is None:
        return False
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return True
    return False
