"""A study, its trials, and which one comes next.

A cell is an arm at a batch size. In it the settings of the search are tried in
their order from one seed; then the best one is run from others. Every trial is
a line of a file, so that a study goes on from what there is. All metrics are
recorded of every trial, so that one study answers for several targets.
"""

import dataclasses
import json
import math
from typing import Any

from tools.sweep import curves, space
from trainers import command_line, configs

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
        metric: "loss" or "accuracy" of the training split, "val_loss" or
            "val_accuracy"; the best setting is that by it.
        target: Its value.
        least_steps: What a trial may take at least, however large the batch.
        stop: Whether a trial ends at the target, and those of `also`.
        evaluation_examples: From one evaluation to the next, at least a step.
        also: From more metrics to targets that the study answers for.
        split_examples: Of each split, how many are evaluated, in whole batches.
        most_steps: What a trial may take at most; schedules stay those of its
            epochs. None: all of them.
        micro_batch: The examples that are held at once; larger batches are
            accumulated. None: all.
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
    also: dict[str, float] = dataclasses.field(default_factory=dict)
    split_examples: int = 10_000
    most_steps: int | None = None
    micro_batch: int | None = None

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

    def run(
        self, label: str, batch_size: int, dry: bool = False
    ) -> command_line.Run:
        """Returns the trainer's run of a cell, or exits with what is wrong.

        Its epochs are those of the flags, or more to make `least_steps` steps.
        Where it is dry, the published size of the data serves.
        """
        trainer = configs.trainer(self.trainer)
        name, flags = self.arms[label]
        optimizer, more = space.ARMS[name]
        given = [f"--optimizer={optimizer}", f"--batch_size={batch_size}"]
        argv = [*self.flags, *more, *flags, *given, "--dry_run"]
        self._refuse_accumulation(argv)
        if (parts := self.parts(batch_size)) > 1:
            argv.insert(-1, f"--gradient_accumulation_steps={parts}")
        run = command_line.parse(trainer, argv)
        if run.data is None and not dry:
            run = command_line.parse(trainer, argv[:-1])
        if run.steps.total < self.least_steps:
            epochs = math.ceil(self.least_steps / run.steps.per_epoch)
            argv += [f"--epochs={epochs}", "--noadjust_epochs"]
            run = command_line.parse(trainer, argv)
        self._refuse(label, run)
        return run

    def total(self, run: command_line.Run) -> int:
        """Returns the steps of a trial that does not end at the target."""
        return min(run.steps.total, self.most_steps or run.steps.total)

    def parts(self, batch_size: int) -> int:
        """Returns in how many micro-steps a batch is taken."""
        return math.ceil(batch_size / (self.micro_batch or batch_size))

    def _refuse_accumulation(self, argv):
        """Exits where the flags would have other steps than updates."""
        if any("gradient_accumulation_steps" in word for word in argv):
            raise SystemExit(
                "--gradient_accumulation_steps: not in a study, whose steps "
                "are updates; give --micro_batch, the examples held at once"
            )

    def _refuse(self, label, run):
        """Exits where trials of a cell would not be what is asked."""
        tuned = self.space(label).keys() & set(space.SCHEDULE)
        if tuned and run.config.schedule != "linear":
            raise SystemExit(
                f"{label}: {', '.join(sorted(tuned))} is of --schedule=linear; "
                "give that, or leave it out of --space"
            )
        settings = run.settings[run.config.optimizer]
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

    @property
    def targets(self) -> dict[str, float]:
        """From each metric that the study answers for to its target."""
        return {**self.also, self.metric: self.target}

    def reaches(self, record: dict[str, float]) -> list[str]:
        """Returns which of the targets are reached by values of the metrics."""
        return [
            metric
            for metric, target in self.targets.items()
            if curves.sign(metric) * record[metric]
            <= curves.sign(metric) * target
        ]

    def by(self, metric: str, target: float) -> "Study":
        """Returns the study of the same trials that asks for another target.

        Its best setting is that of the search; there are no seeds of it.
        """
        if (metric, target) == (self.metric, self.target):
            return self
        return dataclasses.replace(
            self, metric=metric, target=target, also={}, seeds=()
        )

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


def told(study: Study, records: list[dict], asked: Study) -> list[dict]:
    """Returns trials of a study as another one, `study.by`, has them.

    Their steps are those to its target: from the trial where the study had it
    watched for, else from the points of the curve.
    """
    if asked is study:
        return records
    found = []
    for record in records:
        steps = record.get("also", {}).get(asked.metric)
        if study.also.get(asked.metric) != asked.target:
            steps = curves.steps_to(record["curve"], asked.metric, asked.target)
        status = record["status"]
        if status not in FAILED:
            status = REACHED if steps else MISSED
        else:
            steps = None
        found.append({**record, "status": status, "steps": steps or None})
    return found


def of_cell(records: list[dict], label: str, batch_size: int) -> list[dict]:
    """Returns the trials of a cell."""
    cell = {"arm": label, "batch_size": batch_size}
    return [r for r in records if cell.items() <= r.items()]


def tuning(records: list[dict]) -> list[dict]:
    """Returns the trials of the search, not those of the best setting."""
    return [r for r in records if r["seed"] == TUNING_SEED]


def counted(study: Study, records: list[dict]) -> list[dict]:
    """Returns the trials of the search that are within its budget.

    Of a quasi-random search those are the first ones, in the order of the
    settings, up to the last of `study.trials` that did not fail: all optimizers
    get as many (Zhang et al. 2019, section 4), and a trial that was drawn for
    one that is no failure after all does not count.
    """
    tried = tuning(records)
    if study.search == "grid":
        return tried
    tried.sort(key=lambda r: r["index"])
    within, count = [], 0
    for record in tried:
        if count == study.trials:
            break
        within.append(record)
        count += record["status"] not in FAILED
    return within


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
    """Returns (steps to the target, best value of the metric): less is better.

    Of the value of an accuracy the negative is taken.
    """
    if record["status"] in FAILED:
        return math.inf, math.inf
    value = curves.best_value(record["curve"], study.metric)
    return record["steps"] or math.inf, curves.sign(study.metric) * value


def best(study: Study, records: list[dict]) -> dict | None:
    """Returns the best trial of the search in a cell, None if all failed."""
    tried = sound(counted(study, records))
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
