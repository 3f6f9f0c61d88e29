"""What flags cannot be asked for together, each refused in a sentence."""

import math
from typing import Any

from absl import flags

from trainers import extras, launcher
from trainers.flag_definitions import OPTIMIZERS

GHOST_BATCH = 32  # Examples that are normalized together (Zhang et al., F.2).


def number_of_ranks(args: flags.FlagValues) -> int:
    """Returns how many processes the launcher has started, or --ranks."""
    return args.ranks or launcher.size()


def check_compare(args: flags.FlagValues) -> None:
    """Exits where --compare names no optimizer, or one of them twice."""
    for i, name in enumerate(args.compare):
        if name not in OPTIMIZERS:
            raise SystemExit(
                f"--compare: {name!r} is no optimizer; choose from "
                f"{', '.join(OPTIMIZERS)}"
            )
        if name in (args.optimizer, *args.compare[:i]):
            raise SystemExit(f"--compare: {name} is trained already")


def check_combinations(args: flags.FlagValues) -> None:
    """Exits where flags do not go together, or need what is not installed."""
    refused = [
        (args.compare and args.resume, "--resume: not with --compare"),
        (args.overwrite and args.resume, "--resume: not with --overwrite"),
        (
            args.resume and args.model_dir is None,
            "--resume: give the run's directory as --model_dir",
        ),
        (
            args.model_dir is not None and not args.model_dir.strip(),
            "--model_dir: is empty; give a directory, or leave it out",
        ),
        (
            "://" in (args.model_dir or ""),
            f"--model_dir={args.model_dir}: is no local directory; give one",
        ),
        (
            (args.target_metric is None) != (args.target_value is None),
            "--target_metric and --target_value: give both",
        ),
        (args.json and not args.dry_run, "--json: only with --dry_run"),
        (
            args.health
            and not any(
                name.startswith("kfac")
                for name in (args.optimizer, *args.compare)
            ),
            "--health: it tells how K-FAC is; give --optimizer=kfac",
        ),
        (args.ranks and not args.dry_run, "--ranks: only with --dry_run"),
        (
            args.compare and args.steps_per_execution > 1,
            "--steps_per_execution: not with --compare, which needs the loss "
            "of each step",
        ),
        (
            args.ema is not None and args.gradient_accumulation_steps > 1,
            "--ema: not with --gradient_accumulation_steps, as Keras averages "
            "at every micro-step",
        ),
    ]
    for wrong, sentence in refused:
        if wrong:
            raise SystemExit(sentence)
    if args.compare and not args.dry_run:
        extras.require("matplotlib", "plot", "--compare")
    if args.tensorboard:
        extras.require("tensorboard", "tensorboard", "--tensorboard")


def check_batch(args: flags.FlagValues) -> None:
    """Exits where the batch cannot be shared out."""
    ranks, micro_steps = (
        number_of_ranks(args),
        args.gradient_accumulation_steps,
    )
    parts = f"{ranks} rank{'s' * (ranks > 1)}"
    if micro_steps > 1:
        parts += f" in {micro_steps} micro-steps"
    multiple, of_groups = ranks * micro_steps, ""
    if args.model.endswith("_ghost"):
        multiple *= GHOST_BATCH
        of_groups = f" and groups of {GHOST_BATCH} of --model={args.model}"
    if args.batch_size % multiple:
        raise SystemExit(
            f"--batch_size={args.batch_size}: cannot be shared out to {parts}"
            f"{of_groups}; give a multiple of {multiple}"
        )


def check_settings(args: flags.FlagValues, settings: dict[str, Any]) -> None:
    """Exits where the settings of --optimizer contradict each other."""
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
    rate = settings.get("fallback_learning_rate")
    if settings.get("fallback") == "gradient" and rate is not None:
        raise SystemExit(
            f"--fallback_learning_rate={rate}: only with --fallback=adam"
        )
    interval = settings.get("update_interval", "none")
    for name in ("factor_update_period", "inverse_update_period"):
        if interval != "none" and getattr(args, name) is not None:
            raise SystemExit(
                f"--{name}: the period is that of --update_interval={interval};"
                " leave it out, or give --update_interval=none"
            )
    if settings.get("update_interval_after") and interval == "none":
        raise SystemExit("--update_interval_after: only with --update_interval")
    if args.schedule == "steps" and not args.decay_at:
        raise SystemExit("--decay_at: is empty; give one or more places")
    start, end = args.decay_start, args.decay_end
    if args.schedule == "polynomial" and (end or math.inf) <= start:
        raise SystemExit(
            f"--decay_end={end}: must be after --decay_start={start}"
        )
