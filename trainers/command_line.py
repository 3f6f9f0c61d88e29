"""From the command line to a run; what is wrong with it ends the program.

On one process it needs no TensorFlow, which is slow to import; several compare
their flags by Horovod.
"""

import dataclasses
import os
import pathlib
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

from trainers import launch, refusals, run_directory
from trainers.config import Config, Settings, TextConfig
from trainers.flag_definitions import define_flags, fields, help_of
from trainers.steps import Steps, adjusted

if typing.TYPE_CHECKING:
    from trainers.data.images import ImageData
    from trainers.data.tokens import TokenData


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What a program chooses from.

    Attributes:
        name: Of the program, trainers.<name>.
        datasets: Names for --dataset.
        models: Names for --model.
        default: The run without a flag.
        of_datasets: The runs of data sets that have one of their own.
        presets: The runs of papers, by the names that --preset takes.
    """

    name: str
    datasets: tuple[str, ...]
    models: tuple[str, ...]
    default: Config
    of_datasets: Mapping[str, Config] = dataclasses.field(default_factory=dict)
    presets: Mapping[str, Config] = dataclasses.field(default_factory=dict)

    @property
    def text(self) -> bool:
        """Whether the data is text."""
        return isinstance(self.default, TextConfig)


@dataclasses.dataclass(frozen=True)
class Run:
    """A command line that has been found good.

    Attributes:
        trainer: The trainer.
        config: The flags, those of the preset among them.
        data: The data set; None in a dry run where it is not on disk.
        settings: The arguments of --optimizer and of each in --compare, by the
            names of the flags.
        steps: How many updates, and where epochs end.
        model_dir: A directory with no other run in it, or the one to resume;
            os.devnull in a dry run, and on other ranks than 0.
    """

    trainer: Trainer
    config: Any  # Of the trainer's kind of `Config`.
    data: "ImageData | TokenData"
    settings: dict[str, dict[str, Any]]
    steps: Steps
    model_dir: pathlib.Path

    def configuration(self) -> dict[str, Any]:
        """Returns all that the run depends on."""
        found = {
            field.name: getattr(self.config, field.name)
            for field in fields(self.config)
            if not field.metadata.get("may_change")
        }
        return {
            **found,
            "train_size": self.steps.train_size,
            "settings": self.settings[self.config.optimizer],
        }


def main(trainer: Trainer, text: str = "") -> None:
    """Runs a trainer with the flags of the command line.

    Args:
        trainer: The trainer.
        text: What --help says before the flags.
    """
    define_flags(trainer, flags.FLAGS)

    @launch.in_a_sentence()
    def run(argv):
        refuse_words(argv[1:])
        checked = check(trainer, flags.FLAGS)
        # After the checks: TensorFlow is slow.
        if checked.config.dry_run:
            from trainers import dry_run

            dry_run.main(checked)
            return
        from trainers import train

        train.main(checked)

    if {"--help", "-help", "-h", "-?", "--helpshort"} & set(sys.argv[1:]):
        with launch.in_a_sentence():
            print(help_of(trainer, text))
        return
    app.run(run, flags_parser=parsed)


@launch.in_a_sentence()
def parsed(argv: list[str]) -> list[str]:
    """Returns what is no flag of a command line; exits where one is wrong."""
    try:
        return app.parse_flags_with_usage(argv)
    except UnicodeDecodeError as error:
        files = re.findall(r"-flagfile[= ](\S+)", " ".join(argv))
        raise SystemExit(
            f"--flagfile={', '.join(files)}: is no text ({error.reason}); "
            "give a file with a flag in each line"
        ) from error


def parse(trainer: Trainer, argv: Sequence[str]) -> Run:
    """Returns the run of a command line, or exits with what is wrong.

    Args:
        trainer: The trainer.
        argv: Flags, without the name of a program.
    """
    args = flags.FlagValues()
    define_flags(trainer, args)
    try:
        _, *rest = args([trainer.name, *argv])
    except flags.Error as error:
        raise SystemExit(str(error)) from error
    refuse_words(rest)
    return check(trainer, args)


def refuse_words(words: Sequence[str]) -> None:
    """Exits where something on the command line is no flag."""
    if words:
        raise SystemExit(f"{words[0]!r} is no flag: write --name=value")


def check(trainer: Trainer, args: flags.FlagValues) -> Run:
    """Returns the run that `args` ask for, or exits with what is wrong."""
    config = _config(trainer, args)
    refusals.check_compare(config)
    refusals.check_combinations(config)
    refusals.check_batch(config)
    settings = {
        name: refusals.settings_of(config.settings, name)
        for name in (config.optimizer, *config.compare)
    }
    given = {
        field.name: args[field.name].value
        for field in fields(Settings)
        if args[field.name].value is not None
    }
    refusals.check_given(config.optimizer, given)
    settings[config.optimizer] |= given
    refusals.check_settings(config, settings[config.optimizer], given)
    refusals.drop_periods(settings[config.optimizer])
    if not config.dry_run:
        found = dataclasses.asdict(config)
        found |= {f.name: args[f.name].value for f in fields(Settings)}
        # Each may tell as much as it likes.
        del found["verbose"], found["settings"]
        launch.require_same_flags(found)
    data, size = _load(trainer, config)
    epochs: float = config.epochs
    if config.adjust_epochs:
        epochs = adjusted(config.epochs, config.batch_size)
    steps = Steps(size, config.batch_size, epochs)
    for place in config.decay_at if config.schedule == "steps" else []:
        steps.boundary(place)
    if config.batch_size > size:
        raise SystemExit(
            f"--batch_size={config.batch_size}: {config.dataset} has {size:,} "
            "training examples; give at most that many"
        )
    nowhere = pathlib.Path(os.devnull)
    run = Run(trainer, config, data, settings, steps, nowhere)
    if config.dry_run:
        return run
    return dataclasses.replace(run, model_dir=_model_dir(run))


def _config(trainer, args) -> Config:
    """Returns the run of the preset, else of the data set, with what is given
    on the command line in place of its own."""
    base = trainer.of_datasets.get(args.dataset, trainer.default)
    if args.preset is not None:
        base = _preset(trainer, args.preset)
    given = {}
    for field in fields(base):
        if args[field.name].present:
            value = args[field.name].value
            given[field.name] = tuple(value) if type(value) is list else value
    return dataclasses.replace(base, **given)


def _preset(trainer, name) -> Config:
    if name in trainer.presets:
        return trainer.presets[name]
    from trainers import configs

    others = configs.trainers_of_presets()
    if name not in others:
        raise SystemExit(f"--preset={name}: choose from {', '.join(others)}")
    raise SystemExit(
        f"--preset={name} is a run of another program: "
        f"python -m trainers.{others[name].name} --preset={name}"
    )


def _load(trainer, config):
    """Returns the data and the number of training examples.

    In a dry run the published number serves where nothing is on disk.
    """
    if trainer.text:
        from trainers.data import tokens as kind

        options = kind.Options(
            validation=config.validation,
            text_dir=config.text_dir,
            vocabulary=config.vocabulary,
            length=config.length,
            packed=config.packed,
        )
    else:
        from trainers.data import images as kind

        options = kind.Options(
            validation=config.validation,
            text_dir=config.text_dir,
            augment=config.augment,
            mixup=config.mixup,
            random_erasing=config.random_erasing,
            one_hot=config.label_smoothing > 0 or config.mixup is not None,
        )
    size = kind.published_size(config.dataset, config.validation)
    published = config.dry_run and size is not None
    given = (config.dataset, config.data_dir, options)
    # To count sequences would take hours.
    if published and trainer.text and not kind.prepared(*given):
        return None, size
    try:
        found = kind.load(*given)
    except SystemExit:
        if published:
            return None, size
        raise
    return found, found.train_size


def _model_dir(run):
    """Returns where to write; on rank 0, which writes, it is made."""
    config = run.config
    if config.resume:
        found = run_directory.resumed(config.model_dir, run.configuration())
    elif launch.rank() > 0:
        return pathlib.Path(os.devnull)
    else:
        found = run_directory.make_model_dir(
            config.model_dir,
            f"{config.dataset}_{config.optimizer}",
            config.overwrite,
        )
    run_directory.refuse_files(found, config.optimizer, config.compare)
    return found
