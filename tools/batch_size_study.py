"""Steps to a target against batch size, measured, each optimizer tuned.

    python -m tools.batch_size_study --study_dir=study \\
        --batch_sizes=16,64,256 --target_value=0.15 -- \\
        --dataset=digits --model=simple_cnn --validation

What follows -- is the command line of the trainer that --trainer names. For
each optimizer and batch size, settings are drawn from a search space until
--trials of them have not diverged (Zhang et al. 2019, section 4), or all points
of a grid are tried (Ma et al. 2019, III-B); the one that takes the fewest steps
to the target is then run from the --seeds. One graph serves all trials of an
optimizer and a batch size: what is tuned is kept in variables. A trial takes
the epochs of the trainer, but at least --least_steps steps; the model is
evaluated before the first step and after every --evaluation_examples, or every
step: loss and accuracy of the training and of the validation split, with the
averaged weights where there are some. It diverges where the training loss is
not finite, or more than ten times that before training, or in the end no less.
Batches of more than --micro_batch examples are accumulated.

Every trial is a line of <study_dir>/trials.jsonl; the same command goes on from
there, with more batch sizes, optimizers or seeds if they are given.
--report_only makes the table and the pictures of what there is; with --also it
tells the same trials by more targets.

    python -m tools.batch_size_study --preset=ma_cifar10 --study_dir=ma \\
        -- --data_dir=/data

takes a study of a paper (`tools/sweep/presets.py`); other flags override it,
and those after -- are added. --dry_run prints its trials, steps and predicted
hours, without data.
"""

import dataclasses
import json
import math
import os
import pathlib
import shlex
from collections.abc import Callable
from typing import Any

from absl import app, flags

from tools.sweep import budget, presets, report, space, trials, workers
from tools.sweep.store import Store
from trainers import launch

_TRAINER = flags.DEFINE_enum(
    "trainer", "mnist", ["cifar", "imagenet", "lm1b", "mnist"], "Whose flags."
)
_DIRECTORY = flags.DEFINE_string("study_dir", None, "Where it is kept.")
_OPTIMIZERS = flags.DEFINE_list(
    "optimizers", list(space.ARMS), f"Of {', '.join(space.ARMS)}."
)
_ARMS = flags.DEFINE_multi_string(
    "arm",
    [],
    "One more, with flags of its own: 'exact damping: kfac --inverter=eigen'.",
)
_PRESET = flags.DEFINE_enum(
    "preset", None, list(presets.PRESETS), "A study of a paper."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print what would be done, and the hours it would take."
)
_SPEED = flags.DEFINE_float(
    "flops", budget.SPEED, "--dry_run: FLOP/s of products, for the hours.", 1.0
)
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", None, "Examples in a step.")
_SEARCH = flags.DEFINE_enum(
    "search", "quasi", list(space.SEARCHES), "Quasi-random, or a grid."
)
_TRIALS = flags.DEFINE_integer(
    "trials",
    15,
    "quasi: how many that do not diverge; grid: points on each side.",
    lower_bound=1,
)
_SPACE = flags.DEFINE_string(
    "space",
    None,
    "A JSON file: for an optimizer, {hyperparameter: [low, high, scale]}.",
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "For the best setting.")
_METRIC = flags.DEFINE_enum(
    "target_metric",
    "val_loss",
    ["val_loss", "val_accuracy", "loss", "accuracy"],
    "On the validation split, or on the training split.",
)
_ALSO = flags.DEFINE_list(
    "also", [], "More targets of the same trials, such as accuracy:0.99."
)
_SPLIT = flags.DEFINE_integer(
    "split_examples", 10_000, "Evaluated of each split.", lower_bound=1
)
_MICRO_BATCH = flags.DEFINE_integer(
    "micro_batch", None, "The examples that are held at once.", lower_bound=1
)
_TARGET = flags.DEFINE_float("target_value", None, "What to reach.")
_MOST = flags.DEFINE_integer(
    "most_steps", None, "What a trial takes at most.", lower_bound=1
)
_LEAST = flags.DEFINE_integer(
    "least_steps", 100, "What a trial takes at least.", lower_bound=1
)
_EVALUATION = flags.DEFINE_integer(
    "evaluation_examples",
    128,
    "Trained on from one evaluation to the next, at least a step. The default "
    "is for small data: where both splits have thousands of examples, give as "
    "many, as the presets do, or evaluations take longer than the training.",
    lower_bound=1,
)
_STOP = flags.DEFINE_bool("stop_at_target", True, "End a trial there.")
_UNREACHED = flags.DEFINE_bool(
    "allow_unreached", False, "Go on where no trial comes to the target."
)
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "At once; by default as many as cores.", lower_bound=1
)
_SPECTRA = flags.DEFINE_string(
    "spectra", None, "A spectra.json of tools.spectra: predict the steps."
)
_EXPONENT = flags.DEFINE_float(
    "noise_exponent",
    0.0,
    "--spectra: the gradient noise falls as this power of the loss; 0: it "
    "stays. With 1 it is in proportion.",
    lower_bound=0,
)
_REPORT = flags.DEFINE_bool("report_only", False, "Run no trial.")


def whole_numbers(flag) -> tuple[int, ...]:
    """Returns the sorted values of a list flag; exits where one is wrong."""
    try:
        found = sorted({int(text) for text in flag.value or []})
    except ValueError:
        found = []
    sound, kind = found and found[0] >= 1, "from 1 on"
    if flag is _SEEDS:
        sound = found and found[0] >= 0 and trials.TUNING_SEED not in found
        kind = f"from 0 on, not {trials.TUNING_SEED}, the search's"
    if not sound:
        given = ",".join(flag.value or [])
        raise SystemExit(f"--{flag.name}={given}: give whole numbers {kind}")
    return tuple(found)


def arms() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Returns the arms of the flags; exits where one is wrong."""
    found = {name: (name, ()) for name in _OPTIMIZERS.value}
    if _PRESET.value and not _OPTIMIZERS.present:
        found = dict(presets.PRESETS[_PRESET.value].arms)
    for text in _ARMS.value:
        label, colon, rest = text.partition(":")
        try:
            words = shlex.split(rest)
        except ValueError as error:
            raise SystemExit(
                f"--arm={text}: {error}; mend the quotes"
            ) from error
        if not colon or not words:
            raise SystemExit(f"--arm={text}: write 'label: optimizer --flag'")
        label = label.strip()
        if label in found:
            raise SystemExit(f"--arm={text}: there is another {label!r}")
        found[label] = (words[0], tuple(words[1:]))
    for label, (name, _) in found.items():
        if name not in space.ARMS:
            raise SystemExit(
                f"{label}: {name!r} is none of {', '.join(space.ARMS)}"
            )
    if not found:
        raise SystemExit("--optimizers: is empty; give one or more")
    return found


def spaces() -> dict[str, dict[str, tuple]]:
    """Returns the search spaces; exits where --space is wrong."""
    found = space.SEARCHES[_SEARCH.value]
    if _SPACE.value:
        try:
            given = json.loads(pathlib.Path(_SPACE.value).read_text())
            found = space.read(given, found)
        except (OSError, ValueError, RecursionError) as error:
            raise SystemExit(f"--space={_SPACE.value}: {error}") from error
    return bounds_of(found)


def bounds_of(found: dict[str, dict[str, space.Range]]) -> dict:
    """Returns what a study holds of search spaces."""
    return {name: space.bounds(ranges) for name, ranges in found.items()}


def also() -> dict[str, float]:
    """Returns the targets of --also; exits where one is wrong."""
    found = {}
    for text in _ALSO.value:
        metric, _, value = text.partition(":")
        try:
            found[metric] = float(value)
        except ValueError:
            found[metric] = math.nan
        if metric not in trials.METRICS or not math.isfinite(found[metric]):
            raise SystemExit(
                f"--also={text}: write metric:value, with a metric of "
                f"{', '.join(trials.METRICS)}"
            )
        _check_target("also", metric, found[metric])
    return found


def _check_target(flag, metric, value):
    """Exits where a metric never has a value."""
    loss = metric.endswith("loss")
    if not 0 < value < (math.inf if loss else 1.0000001):
        raise SystemExit(
            f"--{flag}={value:g}: {metric} is never that; give one "
            f"{'above 0' if loss else 'from 0 to 1'}"
        )


def given() -> dict[str, Any]:
    """Returns what the flags on the command line say of a study."""
    readers: dict[str, tuple[Any, Callable]] = {
        "trainer": (_TRAINER, lambda flag: flag.value),
        "arms": (_OPTIMIZERS, lambda flag: arms()),
        "batch_sizes": (_BATCH_SIZES, whole_numbers),
        "spaces": (_SPACE, lambda flag: spaces()),
        "search": (_SEARCH, lambda flag: flag.value),
        "trials": (_TRIALS, lambda flag: flag.value),
        "seeds": (_SEEDS, whole_numbers),
        "metric": (_METRIC, lambda flag: flag.value),
        "target": (_TARGET, lambda flag: flag.value),
        "least_steps": (_LEAST, lambda flag: flag.value),
        "stop": (_STOP, lambda flag: flag.value),
        "evaluation_examples": (_EVALUATION, lambda flag: flag.value),
        "also": (_ALSO, lambda flag: also()),
        "split_examples": (_SPLIT, lambda flag: flag.value),
        "most_steps": (_MOST, lambda flag: flag.value),
        "micro_batch": (_MICRO_BATCH, lambda flag: flag.value),
    }
    wanted = {
        name
        for name, (flag, _) in readers.items()
        if _PRESET.value is None or flag.present
    }
    wanted |= {"arms"} if _ARMS.present else set()
    return {name: readers[name][1](readers[name][0]) for name in wanted}


def study(trainer_flags: list[str]) -> trials.Study:
    """Returns the study of the flags; exits where it could not be run."""
    if _PRESET.value is None and _TARGET.value is None:
        raise SystemExit("--target_value: give the value to reach")
    values = given()
    if _PRESET.value is None:
        found = trials.Study(flags=tuple(trainer_flags), **values)
    else:
        found = presets.PRESETS[_PRESET.value]
        more = (*found.flags, *trainer_flags)
        found = dataclasses.replace(found, flags=more, **values)
        others = bounds_of(space.SEARCHES[found.search])
        found = dataclasses.replace(found, spaces={**others, **found.spaces})
    _check_target("target_value", found.metric, found.target)
    if found.search == "grid" and found.trials < 2:
        raise SystemExit("--trials=1: a grid of one point is empty; give more")
    for label, batch_size in found.cells():
        found.run(label, batch_size, dry=_DRY_RUN.value)
    return found


def main(argv: list[str]) -> None:
    if _DRY_RUN.value:
        print(budget.table(study(argv[1:]), _SPEED.value))
        return
    if _DIRECTORY.value is None:
        raise SystemExit("--study_dir: give a directory")
    launch.require_package("matplotlib", "plot", "tools.batch_size_study")
    launch.require_package("scipy", "studies", "tools.batch_size_study")
    directory = pathlib.Path(_DIRECTORY.value)
    spectra = pathlib.Path(_SPECTRA.value) if _SPECTRA.value else None
    if _REPORT.value:
        report.write(directory, spectra, also(), _EXPONENT.value)
        return
    asked = study(argv[1:])
    if spectra is not None:
        report.read_spectra(spectra, asked.metric)
    try:
        store = Store(directory, asked)
    except ValueError as error:
        raise SystemExit(f"--study_dir: {error}") from error
    processes = _PROCESSES.value or len(os.sched_getaffinity(0))
    runner = workers.Runner(asked, store, processes)
    try:
        runner.run(stop_unreached=not _UNREACHED.value)
    except workers.UnreachedError as error:
        raise SystemExit(
            f"{error}; give an easier --target_value and another --study_dir, "
            "or --allow_unreached"
        ) from error
    except KeyboardInterrupt:
        raise SystemExit(
            f"Interrupted: {len(store.records)} trials are in {directory}; the "
            "same command goes on from there"
        ) from None
    report.write(directory, spectra, noise_exponent=_EXPONENT.value)


if __name__ == "__main__":
    app.run(main)
