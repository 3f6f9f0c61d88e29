"""Runs that have left a directory, opened again to look at."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from trainers import checkpoints, command_line, run_directory
from trainers.refusals import base_of

if TYPE_CHECKING:
    import keras


def run(
    trainer: command_line.Trainer, model_dir: str, argv: Sequence[str] = ()
) -> command_line.Run:
    """Returns the run of a directory, with its data.

    Args:
        trainer: The program that it is of.
        model_dir: The directory.
        argv: Flags that are not of the configuration, such as --data_dir.

    Raises:
        SystemExit: There is no run in the directory, or one of another program,
            or without a checkpoint, or the data is not there.
    """
    path = pathlib.Path(model_dir)
    try:
        configuration = run_directory.read_configuration(path)
    except (OSError, ValueError):
        raise SystemExit(
            f"--model_dir={model_dir}: has no readable "
            f"{run_directory.CONFIGURATION}; give the directory of a run of "
            f"trainers.{trainer.name}"
        ) from None
    if not checkpoints.numbered(path):
        raise SystemExit(
            f"--model_dir={model_dir}: has no checkpoint; train with "
            "--keep_checkpoints=1 or more, or -1 for all"
        )
    given = _flags(configuration)
    more = ["--resume", f"--model_dir={model_dir}", *argv]
    try:
        found = command_line.parse(trainer, [*given, *more])
    except SystemExit as error:
        raise SystemExit(
            f"--model_dir={model_dir}: cannot be opened as a run of trainers."
            f"{trainer.name}: {error}"
        ) from None
    # The state is the same with any; a number may not divide one rank.
    found.settings[found.config.optimizer].pop("strategy", None)
    return found


def _flags(configuration) -> list[str]:
    """Returns the flags whose configuration is that of a run."""
    values = dict(configuration)
    values.pop("train_size", None)
    _, implied = base_of(values.get("optimizer", ""))
    for name, value in values.pop("settings", {}).items():
        if name not in implied:
            values[name] = value
    found = []
    for name, value in values.items():
        if isinstance(value, list):
            value = ",".join(map(str, value))
        if value is not None:
            found.append(f"--{name}={value}")
    return found


def models(
    run: command_line.Run,
) -> Iterator[tuple[int, "keras.Model"]]:
    """Yields the model of a run, with its optimizer, as each checkpoint has it.

    It is one and the same model, the last one at the end, and comes with the
    number of updates made.

    Raises:
        SystemExit: A checkpoint is damaged, or is of another run.
    """
    # After the checks: TensorFlow is slow.
    from tfkfac.distributed import communicator
    from trainers import evaluation, train

    train.configure(run)
    model = train.build(run, run.config.optimizer)
    evaluation.build_metrics(model)
    ranks = communicator.current()
    configuration = run_directory.read_configuration(run.model_dir)
    for path in checkpoints.numbered(run.model_dir):
        state, own = checkpoints.restore(path, model, ranks, configuration)
        checkpoints.assign_own(model, own)
        yield state["step"], model
