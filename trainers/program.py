"""What `python -m trainers.<name>` runs."""

from absl import app, flags

from trainers import command_line

flags.disclaim_key_flags()  # As in command_line.


def main(trainer: command_line.Trainer) -> None:
    """Runs `trainer` with the flags of the command line."""
    command_line.define_flags(trainer, flags.FLAGS)

    def run(argv):
        if argv[1:]:
            raise SystemExit(f"{argv[1]!r} is no flag: write --name=value")
        checked = command_line.check(trainer, flags.FLAGS)
        from trainers import harness  # After the checks: TensorFlow is slow.

        harness.main(checked)

    app.run(run)
