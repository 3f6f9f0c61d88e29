"""From the command line to a run, and what can be wrong with it.

Nothing here needs TensorFlow: bad input is refused before it is imported.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from trainers import (
    agreement,
    flag_definitions,
    launcher,
    output,
    presets,
    refusals,
    run_files,
)
from trainers import steps as steps_of_run
from trainers.flag_definitions import SETTINGS, WITHOUT_MOMENTUM
from trainers.steps import Steps

if TYPE_CHECKING:
    from trainers.data.images import ImageData
    from trainers.data.tokens import TokenData

flags.disclaim_key_flags()  # As in flag_definitions.


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What a trainer chooses from, and its defaults.

    Attributes:
        name: Of the program, trainers.<name>.
        datasets: Names for --dataset, the default first.
        models: Names for --model, the default first.
        settings: The arguments of each optimizer.
        batch_size: The default.
        epochs: The default.
        text: Whether the data is text.
        of_datasets: From a data set to (defaults of flags, settings by
            optimizer) that take the place of those above.
    """

    name: str
    datasets: tuple[str, ...]
    models: tuple[str, ...]
    settings: dict[str, dict]
    batch_size: int
    epochs: int
    text: bool = False
    of_datasets: dict[str, tuple[dict, dict]] = dataclasses.field(
        default_factory=dict
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """A command line that has been found good.

    Attributes:
        trainer: The trainer.
        args: The flags, those of the preset among them.
        data: The data set; None in a dry run where it is not on disk.
        settings: The arguments of --optimizer and of each in --compare, by the
            names of the flags.
        steps: How many updates, and where epochs end.
        model_dir: A directory with no other run in it, or the one to resume;
            None in a dry run.
    """

    trainer: Trainer
    args: flags.FlagValues
    data: "ImageData | TokenData | None"
    settings: dict[str, dict]
    steps: Steps
    model_dir: pathlib.Path | None

    def configuration(self) -> dict[str, Any]:
        """Returns all that the run depends on."""
        names = flag_definitions.configuration(self.trainer.text)
        found = {name: getattr(self.args, name) for name in names}
        return {
            **found,
            "train_size": self.steps.train_size,
            "settings": self.settings[self.args.optimizer],
        }


def define_flags(trainer: Trainer, flag_values: flags.FlagValues) -> None:
    """Defines the flags of `trainer`, in `flag_values`."""
    define = flag_definitions.Definitions(flag_values)
    flag_definitions.define_run(trainer, define)
    flag_definitions.define_data(trainer, define)
    flag_definitions.define_training(define)
    flag_definitions.define_settings(define)


def flags_of(trainer: Trainer, args: flags.FlagValues) -> dict[str, Any]:
    """Returns the values of all flags of `trainer`."""
    own = flags.FlagValues()
    define_flags(trainer, own)
    return {name: args[name].value for name in sorted(own)}


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
    given = flags_of(trainer, args)
    more_settings = _apply_defaults(trainer, args)
    refusals.check_compare(args)
    refusals.check_combinations(args)
    refusals.check_batch(args)
    settings = {
        name: _defaults([trainer.settings, *more_settings], name)
        for name in (args.optimizer, *args.compare)
    }
    settings[args.optimizer] |= _given(args)
    refusals.check_settings(args, settings[args.optimizer])
    if not args.dry_run:
        del given["verbose"]  # Each may tell as much as it likes.
        agreement.require_same_flags(given)
    found, size = _load(trainer, args)
    epochs = args.epochs
    if args.adjust_epochs:
        epochs = steps_of_run.adjusted(epochs, args.batch_size)
    steps = Steps(size, args.batch_size, epochs)
    for place in args.decay_at if args.schedule == "steps" else []:
        steps.boundary(place)
    if args.batch_size > size:
        raise SystemExit(
            f"--batch_size={args.batch_size}: {args.dataset} has {size:,} "
            "training examples; give at most that many"
        )
    run = Run(trainer, args, found, settings, steps, None)
    if args.dry_run:
        return run
    return dataclasses.replace(run, model_dir=_model_dir(run))


def _apply_defaults(trainer, args) -> list[dict[str, dict]]:
    """Gives flags the values of the preset, else those of the data set.

    Returns:
        Settings by optimizer, the more special ones last.
    """
    preset = _preset(trainer, args)
    chosen = preset.flags if preset else {}
    dataset = args.dataset
    if not args["dataset"].present:
        dataset = chosen.get("dataset", dataset)
    of_dataset, settings = trainer.of_datasets.get(dataset, ({}, {}))
    for name, value in {**of_dataset, **chosen}.items():
        if not args[name].present:
            args[name].value = value
    return [settings, preset.settings if preset else {}]


def _preset(trainer, args):
    if args.preset is None:
        return None
    preset = presets.PRESETS.get(args.preset)
    if preset is None:
        raise SystemExit(
            f"--preset={args.preset}: choose from {', '.join(presets.PRESETS)}"
        )
    if preset.trainer != trainer.name:
        raise SystemExit(
            f"--preset={args.preset} is a run of another program: "
            f"python -m trainers.{preset.trainer} --preset={args.preset}"
        )
    return preset


def _defaults(levels, optimizer):
    """Returns the settings of an optimizer without the command line."""
    name, changed = WITHOUT_MOMENTUM.get(optimizer, (optimizer, {}))
    found = {}
    for settings in levels:
        found |= settings.get(name, {})
    return found | changed


def _given(args):
    """Returns the settings of --optimizer on the command line."""
    name, changed = WITHOUT_MOMENTUM.get(args.optimizer, (args.optimizer, {}))
    every = dict.fromkeys(s for names in SETTINGS.values() for s in names)
    given = {s: args[s].value for s in every if args[s].value is not None}
    for setting in given:
        if setting not in SETTINGS[name] or setting in changed:
            raise SystemExit(
                f"--{setting} is no setting of --optimizer={args.optimizer}: "
                "leave it out"
            )
    return given


def _load(trainer, args):
    """Returns the data and the number of training examples.

    In a dry run the published number serves where nothing is on disk.
    """
    data, options = _text(args) if trainer.text else _images(args)
    given = (args.dataset, args.data_dir, options)
    size = data.published_size(args.dataset, args.validation)
    published = args.dry_run and size is not None
    # To count sequences would take hours.
    if published and trainer.text and not data.prepared(*given):
        return None, size
    try:
        found = data.load(*given)
    except SystemExit:
        if published:
            return None, size
        raise
    return found, found.train_size


def _images(args):
    """Returns the module of data sets of images, and how one is read."""
    from trainers.data import images

    return images, images.Options(
        augment=args.augment,
        validation=args.validation,
        mixup=args.mixup,
        random_erasing=args.random_erasing,
        one_hot=args.label_smoothing > 0 or args.mixup is not None,
        text_dir=args.text_dir,
    )


def _text(args):
    """Returns the module of data sets of text, and how one is read."""
    from trainers.data import tokens

    return tokens, tokens.Options(
        validation=args.validation,
        vocabulary=args.vocabulary,
        length=args.length,
        packed=args.packed,
        text_dir=args.text_dir,
    )


def input_shape(run: Run) -> tuple[int, ...]:
    """Returns the shape of a model's image, or of its tokens."""
    if run.trainer.text:
        return (run.args.length,)
    from trainers.data import images

    return images.CATALOG[run.args.dataset].shape


def _model_dir(run):
    """Returns where to write; on rank 0, which writes, it is made."""
    args = run.args
    if args.resume:
        found = output.resumed(args.model_dir, run.configuration())
    elif launcher.rank() > 0:
        return pathlib.Path(os.devnull)
    else:
        found = output.make_model_dir(
            args.model_dir, f"{args.dataset}_{args.optimizer}", args.overwrite
        )
    run_files.refuse_files(found, args.optimizer, args.compare)
    return found
