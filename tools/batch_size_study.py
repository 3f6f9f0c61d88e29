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
evaluated after every --evaluation_examples, or every step. It diverges where
the loss is not finite, or more than ten times that before training, or in the
end no less.

Every trial is a line of <study_dir>/trials.jsonl; the same command goes on from
there, with more batch sizes, optimizers or seeds if they are given.
--report_only makes the table and the pictures of what there is.
"""

import json
import math
import os
import pathlib
import shlex

from absl import app, flags

from tools.sweep import report, space, trials, workers
from tools.sweep.store import Store
from trainers import extras

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
    "On validation, or on the batches of the training.",
)
_TARGET = flags.DEFINE_float("target_value", None, "What to reach.")
_LEAST = flags.DEFINE_integer(
    "least_steps", 100, "What a trial takes at least.", lower_bound=1
)
_EVALUATION = flags.DEFINE_integer(
    "evaluation_examples",
    128,
    "Trained on from one evaluation to the next, at least a step.",
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
    return {
        name: {key: (r.low, r.high, r.scale) for key, r in ranges.items()}
        for name, ranges in found.items()
    }


def study(trainer_flags: list[str]) -> trials.Study:
    """Returns the study of the flags; exits where it could not be run."""
    if _TARGET.value is None:
        raise SystemExit("--target_value: give the value to reach")
    loss = _METRIC.value.endswith("loss")
    if not 0 < _TARGET.value < (math.inf if loss else 1.0000001):
        raise SystemExit(
            f"--target_value={_TARGET.value:g}: {_METRIC.value} is never that; "
            f"give one {'above 0' if loss else 'from 0 to 1'}"
        )
    if _SEARCH.value == "grid" and _TRIALS.value < 2:
        raise SystemExit("--trials=1: a grid of one point is empty; give more")
    found = trials.Study(
        trainer=_TRAINER.value,
        flags=tuple(trainer_flags),
        arms=arms(),
        batch_sizes=whole_numbers(_BATCH_SIZES),
        spaces=spaces(),
        search=_SEARCH.value,
        trials=_TRIALS.value,
        seeds=whole_numbers(_SEEDS),
        metric=_METRIC.value,
        target=_TARGET.value,
        least_steps=_LEAST.value,
        stop=_STOP.value,
        evaluation_examples=_EVALUATION.value,
    )
    for label, batch_size in found.cells():
        found.run(label, batch_size)
    return found


def main(argv: list[str]) -> None:
    if _DIRECTORY.value is None:
        raise SystemExit("--study_dir: give a directory")
    extras.require("matplotlib", "plot", "tools.batch_size_study")
    extras.require("scipy", "studies", "tools.batch_size_study")
    directory = pathlib.Path(_DIRECTORY.value)
    spectra = pathlib.Path(_SPECTRA.value) if _SPECTRA.value else None
    if _REPORT.value:
        report.write(directory, spectra)
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
    report.write(directory, spectra)


if __name__ == "__main__":
    app.run(main)
