"""What `python -m trainers.<name>` runs."""

import contextlib
import errno
from collections.abc import Iterator

from absl import app, flags

from trainers import command_line

flags.disclaim_key_flags()  # As in flag_definitions.


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

        try:
            harness.main(checked)
        except OSError as error:
            # Files have sentences of their own, which name them.
            if error.errno != errno.ENOSPC:
                raise
            raise SystemExit(
                "stdout is full: what was saved is whole, and --resume goes on "
                "from there"
            ) from error

    app.run(run)


@contextlib.contextmanager
def in_a_sentence() -> Iterator[None]:
    """Exits with a sentence where an error is of no line of the program."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise SystemExit(
            f"{error.filename or 'a file'} cannot be opened, as too many are "
            "open; allow more, as by ulimit -n 1024"
        ) from error
    except RuntimeError as error:
        from tfkfac.distributed.roll_call import RanksError

        if not isinstance(error, RanksError):
            raise
        raise SystemExit(str(error)) from error
