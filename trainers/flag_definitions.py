"""The flags of a program, from the fields of its configuration."""

import dataclasses
import typing
from typing import TYPE_CHECKING, Any, Literal

from absl import flags

from trainers.config import Config, Settings

if TYPE_CHECKING:
    from trainers.command_line import Trainer

_MEAN_IMAGE = (
    " The mean image that is subtracted is that of the first 10,000 training "
    "images (Osawa et al. 2019, 4.1: of all)."
)


def help_of(trainer: "Trainer", text: str) -> str:
    """Returns what --help prints: a text, and the flags in four groups."""
    own = flags.FlagValues()
    define_flags(trainer, own)
    return f"{text}\n{own.get_help(include_special_flags=False)}"


def fields(config) -> list[dataclasses.Field]:
    """Returns the fields that are flags."""
    return [f for f in dataclasses.fields(config) if f.metadata]


def define_flags(trainer: "Trainer", flag_values: flags.FlagValues) -> None:
    """Defines the flags of a trainer in `flag_values`."""
    choices = {"dataset": trainer.datasets, "model": trainer.models}
    for field in fields(trainer.default):
        default = getattr(trainer.default, field.name)
        named = choices.get(field.name)
        _define(type(trainer.default), field, default, named, flag_values)
    for field in fields(Settings):
        _define(Settings, field, None, None, flag_values)
    for name in (
        f.name for of in (trainer.default, Settings) for f in fields(of)
    ):
        flag_values[name].help += _defaults(trainer, name)
    if trainer.presets:
        flag_values["preset"].help += f" Of {', '.join(trainer.presets)}."
    if "imagenet2012" in trainer.datasets:
        flag_values["dataset"].help += _MEAN_IMAGE


def _defaults(trainer, name) -> str:
    """Returns the defaults of a flag that --help of absl does not show: those
    of settings, by the optimizer, and of data sets with runs of their own."""
    text, base = "", trainer.default
    if usual := _of_optimizers(base, name):
        text += f" The default is {usual}."
    for dataset, run in trainer.of_datasets.items():
        value = _of_optimizers(run, name) or getattr(run, name, None)
        if name != "dataset" and value not in (
            usual,
            getattr(base, name, None),
        ):
            text += f" With --dataset={dataset} it is {value}."
    return text


def _of_optimizers(run: Config, name: str) -> str:
    """Returns the values of a setting, with the optimizers that have them."""
    named: dict[Any, list[str]] = {}
    for optimizer, settings in run.settings.items():
        value = getattr(settings, name, None)
        if value is not None:
            named.setdefault(value, []).append(optimizer)
    return ", ".join(f"{v} for {', '.join(of)}" for v, of in named.items())


def _define(cls, field, default, choices, flag_values) -> None:
    """Defines the flag of a field, in the group of the class that has it."""
    kind = typing.get_type_hints(cls)[field.name]
    if type(None) in typing.get_args(kind):
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
    name, rules = field.name, field.metadata
    common = {
        "flag_values": flag_values,
        "module_name": group_of(cls, field.name),
    }
    text = rules["help"]
    if choices:
        flags.DEFINE_enum(name, default, list(choices), text, **common)
    elif kind is bool:
        flags.DEFINE_boolean(name, default, text, **common)
    elif kind is int:
        bounds = rules.get("least"), rules.get("most")
        flags.DEFINE_integer(name, default, text, *bounds, **common)
    elif kind is float:
        flags.DEFINE_float(name, default, text, **common)
        sound = rules.get("sound", lambda x: 0 < x < float("inf"))
        flags.register_validator(
            name,
            lambda value: value is None or sound(value),
            message=f"must be {rules.get('kind', 'greater than 0')}",
            flag_values=flag_values,
        )
    elif typing.get_origin(kind) is tuple:
        flags.DEFINE_list(name, list(default), text, **common)
    else:
        flags.DEFINE_string(name, default, text, **common)


def group_of(cls: Any, name: str) -> str:
    """Returns the group of the class that has a field."""
    return next(c for c in cls.__mro__ if name in c.__annotations__).GROUP
