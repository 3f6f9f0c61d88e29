"""What `python -m trainers.<name>` runs."""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence

from absl import app, flags

from trainers import command_line, output

flags.disclaim_key_flags()  # As in flag_definitions.


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
        if error.errno in output.TOO_MANY_FILES:
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


@in_a_sentence()
def parsed(argv: Sequence[str]) -> list[str]:
    """Returns what is no flag of a command line; exits where one is wrong."""
    try:
        return app.parse_flags_with_usage(argv)
    except UnicodeDecodeError as error:
        files = re.findall(r"-flagfile[= ](\S+)", " ".join(argv))
        raise SystemExit(
            f"--flagfile={', '.join(files)}: is no text ({error.reason}); "
            "give a file with a flag in each line"
        ) from error


def main(trainer: command_line.Trainer) -> None:
    """Runs `trainer` with the flags of the command line."""
    command_line.define_flags(trainer, flags.FLAGS)

    @in_a_sentence()
    def run(argv):
        command_line.refuse_words(argv[1:])
        checked = command_line.check(trainer, flags.FLAGS)
        # After the checks: TensorFlow is slow.
        if flags.FLAGS.dry_run:
            from trainers import dry_run

            dry_run.main(checked)
            return
        from trainers import harness

        harness.main(checked)

    app.run(run, flags_parser=parsed)
