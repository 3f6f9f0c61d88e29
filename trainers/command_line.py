"""The flags that all trainers share, and what can be wrong with them.

Nothing here needs TensorFlow: bad input is refused before it is imported.
"""

import dataclasses
import math
import os
import pathlib

from absl import flags

from trainers import data, extras, output

flags.disclaim_key_flags()  # They are the trainer's: its --help shows them.

# The flags that are arguments of each optimizer.
_ARGUMENTS = {
    "kfac": (
        "learning_rate",
        "momentum",
        "damping",
        "kl_clip",
        "factor_decay",
        "factor_update_period",
        "inverse_update_period",
        "fisher",
        "inverter",
        "weight_decay",
    ),
    "momentum": ("learning_rate", "momentum", "weight_decay"),
    "sgd": ("learning_rate", "weight_decay"),
    "adam": ("learning_rate", "weight_decay"),
}


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What a trainer chooses from, and its defaults.

    Attributes:
        datasets: Names for --dataset, the default first.
        models: Names for --model, the default first.
        settings: The arguments of each optimizer, the default first.
        batch_size: The default.
        epochs: The default.
    """

    datasets: tuple[str, ...]
    models: tuple[str, ...]
    settings: dict[str, dict]
    batch_size: int
    epochs: int


@dataclasses.dataclass(frozen=True)
class Run:
    """A command line that has been found good.

    Attributes:
        args: The flags.
        data: The data set.
        settings: The arguments of --optimizer and of each in --compare.
        model_dir: A directory with no other run in it.
    """

    args: flags.FlagValues
    data: data.ImageData
    settings: dict[str, dict]
    model_dir: pathlib.Path


def define_flags(trainer: Trainer, flag_values: flags.FlagValues) -> None:
    """Defines the flags of `trainer`, in `flag_values`."""

    def define(kind, name, default, text, *choices, **bounds):
        kind(name, default, *choices, text, flag_values=flag_values, **bounds)

    def check(name, test, text):
        flags.register_validator(
            name,
            lambda value: value is None or test(value),
            message=f"must be {text}",
            flag_values=flag_values,
        )

    _define_run(trainer, define)
    _define_settings(define, check)


def _define_run(trainer, define):
    """The flags of data, model, training and output."""
    enum, integer = flags.DEFINE_enum, flags.DEFINE_integer
    boolean, string = flags.DEFINE_boolean, flags.DEFINE_string
    datasets, models = trainer.datasets, trainer.models
    optimizers = list(trainer.settings)
    define(enum, "dataset", datasets[0], "Data set.", datasets)
    text = "Where tensorflow-datasets keeps its data; by default its own place."
    define(string, "data_dir", None, text)
    define(enum, "model", models[0], "Model.", models)
    define(enum, "optimizer", optimizers[0], "Optimizer.", optimizers)
    text = (
        "Optimizers to train with after that, each with its own settings, from "
        "the same weights on the same batches; loss.png shows them all."
    )
    define(flags.DEFINE_list, "compare", [], text)
    text = "Examples in a batch, on all ranks together."
    define(integer, "batch_size", trainer.batch_size, text, lower_bound=1)
    text = "Passes over the training data."
    define(integer, "epochs", trainer.epochs, text, lower_bound=1)
    text = "Of the initial weights, the order of the data, K-FAC's samples."
    define(integer, "seed", 0, text, lower_bound=0, upper_bound=2**31 - 1)
    text = "Where to write; by default a fresh directory in ./runs."
    define(string, "model_dir", None, text)
    define(boolean, "overwrite", False, "Replace the run in --model_dir.")
    define(boolean, "tensorboard", False, "Write TensorBoard logs.")
    text = "0: results only; 1: progress bar; 2: one line per epoch."
    define(integer, "verbose", 1, text, lower_bound=0, upper_bound=2)


def _define_settings(define, check):
    """The flags that override the settings of --optimizer."""
    enum, integer, number = (
        flags.DEFINE_enum,
        flags.DEFINE_integer,
        flags.DEFINE_float,
    )
    define(number, "learning_rate", None, "Learning rate.")
    check("learning_rate", lambda x: 0 < x < math.inf, "greater than 0")
    define(number, "momentum", None, "Momentum.")
    check("momentum", lambda x: 0 <= x < 1, "at least 0 and less than 1")
    define(number, "weight_decay", None, "Decoupled weight decay.")
    check("weight_decay", lambda x: 0 <= x < math.inf, "0 or more")
    define(number, "damping", None, "K-FAC: damping.")
    check("damping", lambda x: 0 < x < math.inf, "greater than 0")
    text = "K-FAC: bound on the size of an update; inf for none."
    define(number, "kl_clip", None, text)
    check("kl_clip", lambda x: x > 0, "greater than 0")
    text = "K-FAC: decay of the factors' running averages."
    define(number, "factor_decay", None, text)
    check("factor_decay", lambda x: 0 <= x < 1, "at least 0 and less than 1")
    text = "K-FAC: steps from one factor update to the next."
    define(integer, "factor_update_period", None, text, lower_bound=1)
    text = "K-FAC: steps from one inversion to the next."
    define(integer, "inverse_update_period", None, text, lower_bound=1)
    text = "K-FAC: the Fisher of the model's own predictions or of the labels."
    define(enum, "fisher", None, text, ["sampled", "empirical"])
    text = "K-FAC: factored or exact damping."
    define(enum, "inverter", None, text, ["cholesky", "eigen"])


def check(trainer: Trainer, args: flags.FlagValues) -> Run:
    """Returns the run that `args` ask for, or exits with what is wrong."""
    _check_compare(trainer, args)
    if args.compare:
        extras.require("matplotlib", "plot", "--compare")
    if args.tensorboard:
        extras.require("tensorboard", "tensorboard", "--tensorboard")
    settings = {name: trainer.settings[name] for name in args.compare}
    settings[args.optimizer] = _settings(trainer, args)
    found = data.load(args.dataset, args.data_dir)
    if args.batch_size > found.train_size:
        raise SystemExit(
            f"--batch_size={args.batch_size}: {found.name} has "
            f"{found.train_size:,} training examples; give at most that many"
        )
    model_dir = pathlib.Path(os.devnull)
    if int(os.environ.get("HOROVOD_RANK", "0")) == 0:  # Which writes for all.
        model_dir = output.make_model_dir(
            args.model_dir, f"{args.dataset}_{args.optimizer}", args.overwrite
        )
    return Run(args, found, settings, model_dir)


def _check_compare(trainer, args):
    for i, name in enumerate(args.compare):
        if name not in trainer.settings:
            raise SystemExit(
                f"--compare: {name!r} is no optimizer; choose from "
                f"{', '.join(trainer.settings)}"
            )
        if name in (args.optimizer, *args.compare[:i]):
            raise SystemExit(f"--compare: {name} is trained already")


def _settings(trainer, args):
    """Returns the trainer's settings of --optimizer, overridden by flags."""
    given = {
        name: getattr(args, name)
        for name in _ARGUMENTS["kfac"]
        if getattr(args, name) is not None
    }
    for name in given:
        if name not in _ARGUMENTS[args.optimizer]:
            raise SystemExit(
                f"--{name} is no setting of --optimizer={args.optimizer}: "
                "leave it out"
            )
    if given.get("kl_clip") == math.inf:
        given["kl_clip"] = None
    return {**trainer.settings[args.optimizer], **given}
