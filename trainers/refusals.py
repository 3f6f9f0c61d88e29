"""What flags cannot be asked for together, each refused in a sentence."""

import dataclasses
import math
import typing
from typing import Any

from trainers import launch
from trainers.config import Config, Optimizer, Settings

GHOST_BATCH = 32  # Examples that are normalized together (Zhang et al., F.2).
OPTIMIZERS: tuple[str, ...] = typing.get_args(Optimizer)
# Names for what a setting of another optimizer makes.
_WITHOUT_MOMENTUM: dict[str, tuple[str, dict[str, Any]]] = {
    "kfac_without_momentum": ("kfac", {"momentum": 0.0}),
    "adam_without_momentum": ("adam", {"beta_1": 0.0}),
}
PERIODS = "factor_update_period", "inverse_update_period"
_MOMENTUM = ("learning_rate", "momentum", "weight_decay")
_ADAM = ("learning_rate", "beta_1", "beta_2", "epsilon", "weight_decay")
SETTINGS = {
    "kfac": [
        field.name
        for field in dataclasses.fields(Settings)
        if field.name in _MOMENTUM or field.metadata["help"].startswith("K-FAC")
    ],
    "sgd": ("learning_rate", "weight_decay"),
    "momentum": _MOMENTUM,
    "nesterov": _MOMENTUM,
    "adam": _ADAM,
    "adamw": _ADAM,
    "muon": _MOMENTUM,
}


def base_of(optimizer: str) -> tuple[str, dict[str, Any]]:
    """Returns whose settings an optimizer has, and those that its name sets."""
    return _WITHOUT_MOMENTUM.get(optimizer, (optimizer, {}))


def settings_of(
    settings: dict[str, Settings], optimizer: str
) -> dict[str, Any]:
    """Returns the arguments of an optimizer without the command line."""
    name, implied = base_of(optimizer)
    return settings.get(name, Settings()).given() | implied


def drop_periods(settings: dict[str, Any]) -> None:
    """Removes the periods where --update_interval has them."""
    if settings.get("update_interval", "none") != "none":
        for name in PERIODS:
            settings.pop(name, None)


def check_given(optimizer: str, given: dict[str, Any]) -> None:
    """Exits where a setting is not one of --optimizer.

    Args:
        optimizer: The optimizer.
        given: Its settings on the command line.
    """
    name, implied = base_of(optimizer)
    for setting in given:
        if setting not in SETTINGS[name] or setting in implied:
            raise SystemExit(
                f"--{setting} is no setting of --optimizer={optimizer}: "
                "leave it out"
            )


def number_of_ranks(config: Config) -> int:
    """Returns how many processes the launcher has started, or --ranks."""
    return config.ranks or launch.size()


def check_compare(config: Config) -> None:
    """Exits where --compare names no optimizer, or one of them twice."""
    for i, name in enumerate(config.compare):
        if name not in OPTIMIZERS:
            raise SystemExit(
                f"--compare: {name!r} is no optimizer; choose from "
                f"{', '.join(OPTIMIZERS)}"
            )
        if name in (config.optimizer, *config.compare[:i]):
            raise SystemExit(f"--compare: {name} is trained already")


def check_combinations(config: Config) -> None:
    """Exits where flags do not go together, or need what is not installed."""
    refused = [
        (config.compare and config.resume, "--resume: not with --compare"),
        (config.overwrite and config.resume, "--resume: not with --overwrite"),
        (
            config.resume and config.model_dir is None,
            "--resume: give the run's directory as --model_dir",
        ),
        (
            config.model_dir is not None and not config.model_dir.strip(),
            "--model_dir: is empty; give a directory, or leave it out",
        ),
        (
            "://" in (config.model_dir or ""),
            f"--model_dir={config.model_dir}: is no local directory; give one",
        ),
        (
            (config.target_metric is None) != (config.target_value is None),
            "--target_metric and --target_value: give both",
        ),
        (config.json and not config.dry_run, "--json: only with --dry_run"),
        (
            config.health
            and not any(
                name.startswith("kfac")
                for name in (config.optimizer, *config.compare)
            ),
            "--health: it tells how K-FAC is; give --optimizer=kfac",
        ),
        (config.ranks and not config.dry_run, "--ranks: only with --dry_run"),
        (
            config.compare and config.steps_per_execution > 1,
            "--steps_per_execution: not with --compare, which needs the loss "
            "of each step",
        ),
        (
            config.ema is not None and config.gradient_accumulation_steps > 1,
            "--ema: not with --gradient_accumulation_steps, as Keras averages "
            "at every micro-step",
        ),
    ]
    for wrong, sentence in refused:
        if wrong:
            raise SystemExit(sentence)
    if config.compare and not config.dry_run:
        launch.require_package("matplotlib", "plot", "--compare")
    if config.tensorboard:
        launch.require_package("tensorboard", "tensorboard", "--tensorboard")


def check_batch(config: Config) -> None:
    """Exits where the batch cannot be shared out."""
    ranks, micro_steps = (
        number_of_ranks(config),
        config.gradient_accumulation_steps,
    )
    parts = f"{ranks} rank{'s' * (ranks > 1)}"
    if micro_steps > 1:
        parts += f" in {micro_steps} micro-steps"
    multiple, of_groups = ranks * micro_steps, ""
    if config.model.endswith("_ghost"):
        multiple *= GHOST_BATCH
        of_groups = f" and groups of {GHOST_BATCH} of --model={config.model}"
    if config.batch_size % multiple:
        raise SystemExit(
            f"--batch_size={config.batch_size}: cannot be shared out to {parts}"
            f"{of_groups}; give a multiple of {multiple}"
        )


def check_settings(
    config: Config, settings: dict[str, Any], given: dict[str, Any]
) -> None:
    """Exits where the settings of --optimizer contradict each other.

    Args:
        config: The flags.
        settings: All of them.
        given: Those on the command line.
    """
    target, warmup = (
        settings.get(f"damping_{name}") for name in ("target", "warmup")
    )
    if (target is None) != (warmup is None):
        raise SystemExit("--damping_target and --damping_warmup: give both")
    if target is not None and settings["damping"] <= target:
        raise SystemExit(
            f"--damping_target={target}: must be less than --damping="
            f"{settings['damping']}, where it starts"
        )
    strategy = str(settings.get("strategy", "owner"))
    known = ("owner", "replicated")
    number = strategy.isascii() and strategy.isdigit() and int(strategy)
    if strategy not in known and not number:
        raise SystemExit(
            f"--strategy={strategy}: must be owner, replicated or a number of "
            "ranks"
        )
    ranks = number_of_ranks(config)
    if number and ranks > 1 and ranks % number:
        raise SystemExit(
            f"--strategy={strategy}: groups of {number} do not divide {ranks} "
            f"ranks; give a divisor of {ranks}"
        )
    rate = settings.get("fallback_learning_rate")
    if settings.get("fallback") == "gradient" and rate is not None:
        raise SystemExit(
            f"--fallback_learning_rate={rate}: only with --fallback=adam"
        )
    interval = settings.get("update_interval", "none")
    for name in PERIODS:
        if interval != "none" and name in given:
            raise SystemExit(
                f"--{name}: the period is that of --update_interval={interval};"
                " leave it out, or give --update_interval=none"
            )
    if settings.get("update_interval_after") and interval == "none":
        raise SystemExit("--update_interval_after: only with --update_interval")
    if config.schedule == "steps" and not config.decay_at:
        raise SystemExit("--decay_at: is empty; give one or more places")
    start, end = config.decay_start, config.decay_end
    if config.schedule == "polynomial" and (end or math.inf) <= start:
        raise SystemExit(
            f"--decay_end={end}: must be after --decay_start={start}"
        )
