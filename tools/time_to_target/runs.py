"""Which runs there are, and which are still to be made.

First each arm's settings are tried from one seed; where steps to a target
count, a setting is given up when it has taken more than the best one of the arm
before it, or more than twice the best one of the peers before it. Then the best
setting of each is run from other seeds, the arms in turn.

The cells of `tools.sweep` run many trials by one trace and count steps alone;
here seconds count, and memory, so that each run is a process of its own.
"""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

from tools import forms, json_lines
from tools.time_to_target import optimizers
from tools.time_to_target.studies import TUNING_SEED, Study
from tools.time_to_target.tasks import TASKS


class Runs:
    """The runs of a directory, of all studies: `runs.jsonl`, a line for each.

    Args:
        directory: Made where there is none.
        show: Is given a line for each run.

    Raises:
        ValueError: Another command runs in the directory, or a line is damaged.
    """

    def __init__(
        self, directory: pathlib.Path, show: Callable[[str], None] = print
    ):
        self._lines = json_lines.Lines(directory / "runs.jsonl", check)
        self._show = show
        self._of = latest(self._lines.records)

    @property
    def records(self) -> list[dict]:
        """All runs so far, of those that were made twice the last."""
        return list(self._of.values())

    def measure(self, study: Study) -> None:
        """Makes all runs of a study."""
        for task in study.tasks:
            best, least = {}, None
            for arm in study.arms:
                best[arm], steps = self._best(study, task, arm, least)
                if study.arms[arm].optimizer != "kfac":
                    least = fewest(least, steps)
            for seed in study.seeds:
                for label, arguments in best.items():
                    self._made(
                        _run(study, task, label, arguments, seed),
                        self._limit(study, task, label, seed),
                        study.stay,
                    )

    def _best(self, study, task, label, least) -> tuple[dict, int | None]:
        """Returns the setting of an arm with the fewest steps to the target,
        and those steps; where none reaches it, or the loss counts, that of the
        least loss, and None.

        Args:
            least: The fewest steps of the peers before it; None for none.
        """
        settings = study.arms[label].settings
        if len(settings) == 1:
            return settings[0], None
        limit, found = least and 2 * least, []
        for arguments in settings:
            run = _run(study, task, label, arguments, TUNING_SEED)
            found.append(self._made(run, limit))
            limit = fewest(limit, found[-1]["steps"])
        chosen = best(found)
        return chosen["arguments"], chosen["steps"]

    def _limit(self, study, task, label, seed) -> int | None:
        """Returns twice the steps of the arm that an arm is beside."""
        beside = study.arms[label].beside
        if beside is None:
            return None
        arguments = study.arms[beside].settings[0]
        first = self._made(_run(study, task, beside, arguments, seed))
        return first["steps"] and 2 * first["steps"]

    def _made(self, run, limit=None, stay=False) -> dict:
        """Returns a run's record, from the file where it is there."""
        record = self._of.get(_key(run))
        if record is not None and _tells(record, limit, stay):
            return record
        record = _train({**run, "limit": limit, "stay": stay})
        self._lines.add(record)
        self._of[_key(run)] = record
        self._show(_line(record))
        return record


def _run(study: Study, task: str, label: str, arguments, seed: int) -> dict:
    """Returns what is asked of one run."""
    return {
        "task": task,
        "optimizer": study.arms[label].optimizer,
        "arguments": arguments,
        "seed": seed,
        "after": study.after(task),
    }


_NULL = type(None)
_ANY = int, float  # A loss that diverged is NaN or infinite.
_FORM = {
    "task": set(TASKS),
    "optimizer": {"kfac", *optimizers.PEERS},
    "arguments": dict,
    "seed": forms.COUNT,
    "after": (forms.POSITIVE, _NULL),
    "limit": (forms.POSITIVE, _NULL),
    "stay": bool,
    "steps": (forms.POSITIVE, _NULL),
    "seconds": (forms.AMOUNT, _NULL),
    "first_step_seconds": (forms.AMOUNT, _NULL),
    "processor_seconds": (forms.AMOUNT, _NULL),
    "worst_after": (*_ANY, _NULL),
    "peak_mib": forms.NUMBER,
    "state_mib": forms.AMOUNT,
    "curve": [[forms.POSITIVE, _ANY, forms.AMOUNT]],
}


def check(record: Any) -> None:
    """Raises ValueError where a value is no record of a run."""
    forms.check(record, _FORM)
    forms.check(record.get("failure", ""), str, "'failure'")
    if not record["curve"] and "failure" not in record:
        raise ValueError("its curve is empty, and it has no failure")
    if record["curve"] and record["first_step_seconds"] is None:
        raise ValueError("it has a curve and no seconds of the first step")
    steps = [step for step, _, _ in record["curve"]]
    if steps != sorted(set(steps)):
        raise ValueError("the steps of its curve are not in order")
    for name in ("seconds", "processor_seconds"):
        if (record["steps"] is None) != (record[name] is None):
            raise ValueError(
                f"its steps are {record['steps']}, and its {name} are "
                f"{record[name]}"
            )


def latest(records: Iterable[dict]) -> dict[str, dict]:
    """Returns the last record of each run."""
    return {_key(record): record for record in records}


def _key(run: dict) -> str:
    """Returns what tells a run from others."""
    names = ("task", "optimizer", "arguments", "seed", "after")
    return json.dumps([run[name] for name in names], sort_keys=True)


def _tells(record: dict, limit: int | None, stay: bool) -> bool:
    """Returns whether a record answers a run with that limit."""
    if stay and not record["stay"]:
        return False
    if record["steps"] or "failure" in record or record["limit"] is None:
        return True
    return limit is not None and limit <= record["limit"]


def of(study: Study, task: str, label: str, records: list[dict]) -> list[dict]:
    """Returns the runs of an arm on a task, whatever the seed."""
    arm, after = study.arms[label], study.after(task)
    return [
        r
        for r in records
        if (r["task"], r["optimizer"]) == (task, arm.optimizer)
        and r["after"] == after
        and r["arguments"] in arm.settings
    ]


def tried(
    study: Study, task: str, label: str, records: list[dict]
) -> list[dict]:
    """Returns the runs of an arm's search on a task."""
    found = of(study, task, label, records)
    return [r for r in found if r["seed"] == TUNING_SEED]


def fewest(*steps: int | None) -> int | None:
    """Returns the least; None where all are."""
    return min((x for x in steps if x is not None), default=None)


def best(records: list[dict]) -> dict:
    """Returns the run with the fewest steps, then with the least loss."""
    return min(records, key=lambda r: (r["steps"] or float("inf"), loss(r)))


def loss(record: dict) -> float:
    """Returns the last loss of a run, infinite where it diverged."""
    diverged = "failure" in record or not record["curve"]
    return float("inf") if diverged else record["curve"][-1][1]


def _train(run: dict) -> dict:
    """Returns the record of a run in a process of its own."""
    command = [sys.executable, "-m", "tools.time_to_target.training"]
    done = subprocess.run(
        [*command, json.dumps(run)],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    if done.returncode:
        raise RuntimeError(f"{run} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _line(record: dict) -> str:
    status = "not reached"
    if record["steps"]:
        status = f"{record['steps']} steps, {record['seconds']:.1f} s"
    elif record["after"]:
        _, last, seconds = record["curve"][-1] if record["curve"] else (0, 0, 0)
        status = f"loss {last:.4g}, {seconds:.1f} s"
    given = ", ".join(f"{k} {v}" for k, v in record["arguments"].items())
    name = f"{record['task']}, {record['optimizer']}, seed {record['seed']}"
    return f"{name}: {record.get('failure', status)}; {given or 'as it comes'}"
