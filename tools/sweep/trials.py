"""A study, its trials, and which one comes next.

A cell is an arm at a batch size. In it the settings of the search are tried in
their order from one seed; then the best one is run from others. Every trial is
a line of a file, so that a study goes on from what there is.
"""

import dataclasses
import importlib
import json
import math
from typing import Any

from tools.sweep import space
from trainers import command_line

TUNING_SEED = 100
REACHED, MISSED = "reached", "not reached"
DIVERGED, CRASHED = "diverged", "crashed"
FAILED = (DIVERGED, CRASHED)
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")
DRAWS = 2  # Of the quasi-random search: at most so many for each trial.


@dataclasses.dataclass(frozen=True)
class Study:
    """What is asked.

    Attributes:
        trainer: trainers.<trainer>.
        flags: Its command line.
        arms: From a label to (arm of `space.ARMS`, more flags).
        batch_sizes: In increasing order.
        spaces: From an arm to {hyperparameter: [low, high, scale]}.
        search: "quasi" or "grid".
        trials: quasi: how many that do not diverge; grid: points on a side.
        seeds: Of the best setting.
        metric: "loss" (of the batches), "val_loss", "accuracy" or
            "val_accuracy".
        target: Its value.
        least_steps: What a trial may take at least, however large the batch.
        stop: Whether a trial ends at the target.
        evaluation_examples: From one evaluation to the next, at least a step.
    """

    trainer: str
    flags: tuple[str, ...]
    arms: dict[str, tuple[str, tuple[str, ...]]]
    batch_sizes: tuple[int, ...]
    spaces: dict[str, dict[str, tuple[float, float, str]]]
    search: str
    trials: int
    seeds: tuple[int, ...]
    metric: str
    target: float
    least_steps: int
    stop: bool = True
    evaluation_examples: int = 128

    def space(self, label: str) -> dict[str, space.Range]:
        """Returns what is tuned in an arm."""
        ranges = self.spaces[self.arms[label][0]]
        return {name: space.Range(*bounds) for name, bounds in ranges.items()}

    def settings(self, label: str) -> list[dict]:
        """Returns what may be tried in an arm, in order."""
        ranges = self.space(label)
        if self.search == "grid":
            return space.grid(ranges, self.trials)
        return space.quasi_random(ranges, DRAWS * self.trials)

    def run(self, label: str, batch_size: int) -> command_line.Run:
        """Returns the trainer's run of a cell, or exits with what is wrong.

        Its epochs are those of the flags, or more to make `least_steps` steps.
        """
        module = importlib.import_module(f"trainers.{self.trainer}")
        name, flags = self.arms[label]
        optimizer, more = space.ARMS[name]
        given = [f"--optimizer={optimizer}", f"--batch_size={batch_size}"]
        argv = [*self.flags, *more, *flags, *given, "--dry_run"]
        run = command_line.parse(module.TRAINER, argv)
        if run.data is None:  # A dry run does without it.
            run = command_line.parse(module.TRAINER, argv[:-1])
        if run.steps.total < self.least_steps:
            epochs = math.ceil(self.least_steps / run.steps.per_epoch)
            argv.append(f"--epochs={epochs}")
            run = command_line.parse(module.TRAINER, argv)
        self._refuse(label, run)
        return run

    def _refuse(self, label, run):
        """Exits where trials of a cell would not be what is asked."""
        if run.args.gradient_accumulation_steps > 1:
            raise SystemExit(
                "--gradient_accumulation_steps: not in a study, whose steps "
                "are updates"
            )
        settings = run.settings[run.args.optimizer]
        schedules = {"damping": "damping_target", "momentum": "couple_momentum"}
        for name, flag in schedules.items():
            if name in self.space(label) and settings.get(flag):
                raise SystemExit(
                    f"{label}: {name} is tuned, so it can be no schedule: "
                    f"leave --{flag} out, or {name} out of --space"
                )

    def cells(self) -> list[tuple[str, int]]:
        """Returns all (label, batch size): a medium batch size first, to learn
        early whether the target can be reached, then the large ones."""
        medium = self.batch_sizes[len(self.batch_sizes) // 2]
        order = [medium, *sorted(set(self.batch_sizes) - {medium})[::-1]]
        return [(label, size) for size in order for label in self.arms]

    def better(self, value: float) -> bool:
        """Returns whether a value of the metric is as good as the target."""
        if self.metric.endswith("loss"):
            return value <= self.target
        return value >= self.target

    def config(self) -> dict[str, Any]:
        """Returns what `from_config` and JSON take."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Study":
        arms = {k: (n, tuple(f)) for k, (n, f) in config["arms"].items()}
        lists = ("flags", "batch_sizes", "seeds")
        more = {name: tuple(config[name]) for name in lists}
        return cls(**{**config, **more, "arms": arms})


@dataclasses.dataclass(frozen=True)
class Task:
    """A trial to run: the settings of number `index`, from a seed."""

    index: int
    settings: dict
    seed: int

    def crashed(self, reason: str) -> dict:
        """Returns the record of a trial that came to no end."""
        return {
            **dataclasses.asdict(self),
            "status": CRASHED,
            "reason": reason,
            "steps": None,
            "curve": {},
        }


def of_cell(records: list[dict], label: str, batch_size: int) -> list[dict]:
    """Returns the trials of a cell."""
    cell = {"arm": label, "batch_size": batch_size}
    return [r for r in records if cell.items() <= r.items()]


def tuning(records: list[dict]) -> list[dict]:
    """Returns the trials of the search, not those of the best setting."""
    return [r for r in records if r["seed"] == TUNING_SEED]


def sound(records: list[dict]) -> list[dict]:
    """Returns the trials that did not fail."""
    return [r for r in records if r["status"] not in FAILED]


def finals(records: list[dict], best: dict) -> list[dict]:
    """Returns the trials of the best setting from the seeds."""
    return [
        r
        for r in records
        if r["seed"] != TUNING_SEED and r["settings"] == best["settings"]
    ]


def rank(study: Study, record: dict) -> tuple[float, float]:
    """Returns (steps to the target, last value of the metric): less is better.

    Of the value of an accuracy the negative is taken.
    """
    if record["status"] in FAILED:
        return math.inf, math.inf
    value = record["curve"][study.metric][-1]
    if not study.metric.endswith("loss"):
        value = -value
    return record["steps"] or math.inf, value


def best(study: Study, records: list[dict]) -> dict | None:
    """Returns the best trial of the search in a cell, None if all failed."""
    tried = sound(tuning(records))
    return min(tried, key=lambda r: rank(study, r), default=None)


def untried(study: Study, label: str, records: list[dict]) -> list[int]:
    """Returns which settings the search of a cell lacks, if no more fail.

    First those whose trials have been taken out of the file.

    Args:
        study: The study.
        label: The arm.
        records: The cell's trials.
    """
    tried = tuning(records)
    known = {r["index"] for r in tried}
    first_new = max(known, default=-1) + 1
    gaps = [i for i in range(first_new) if i not in known]
    new = range(first_new, len(study.settings(label)))
    if study.search == "quasi":
        lacking = study.trials - len(sound(tried)) - len(gaps)
        new = new[: max(0, lacking)]
    return [*gaps, *new]


def following(study: Study, label: str, records: list[dict]) -> Task | None:
    """Returns what a cell needs next, None where it is complete.

    Args:
        study: The study.
        label: The arm.
        records: The cell's trials.
    """
    for index in untried(study, label, records):
        return Task(index, study.settings(label)[index], TUNING_SEED)
    found = best(study, records)
    if found is None or study.stop and found["status"] != REACHED:
        return None
    done = {r["seed"] for r in finals(records, found)}
    for seed in study.seeds:
        if seed not in done:
            return Task(found["index"], found["settings"], seed)
    return None


def left(study: Study, label: str, records: list[dict]) -> int:
    """Returns how many trials a cell needs still, if no more fail."""
    search = len(untried(study, label, records))
    if not search and following(study, label, records) is None:
        return 0
    found = best(study, records)
    done = len(finals(records, found)) if found else 0
    return search + len(study.seeds) - done
