"""Which runs there are, and which are still to be made.

First each optimizer's settings are tried from one seed; a setting is given up
where it has taken more steps than the best one before it. Then the best
setting of each is run from three other seeds, the optimizers in turn.
"""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence

from tools.time_to_target import settings

TUNING_SEED = 100
SEEDS = (0, 1, 2)


class Runs:
    """The runs of a directory: `runs.jsonl`, a line for each.

    Args:
        directory: Made where there is none.
        show: Is given a line for each run.

    Attributes:
        records: All runs so far.
    """

    def __init__(
        self, directory: pathlib.Path, show: Callable[[str], None] = print
    ):
        directory.mkdir(parents=True, exist_ok=True)
        self._path, self._show = directory / "runs.jsonl", show
        self.records: list[dict] = []
        if self._path.exists():
            lines = self._path.read_text().splitlines()
            self.records = [json.loads(line) for line in lines]

    def made(self, **run) -> dict:
        """Returns a run, from the file where it is there, else made now."""
        limit = run.pop("limit", None)
        for record in self.records:
            if all(record[key] == value for key, value in run.items()):
                return record
        record = _train({**run, "limit": limit})
        self.records.append(record)
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self._show(_line(record))
        return record

    def best(self, task: str, optimizer: str) -> dict:
        """Returns the setting of an optimizer with the fewest steps to the
        target; where none reaches it, that of the least last loss."""
        if len(settings.SETTINGS[optimizer]) == 1:
            return settings.SETTINGS[optimizer][0]
        found, limit = [], None
        for arguments in settings.SETTINGS[optimizer]:
            run = self.made(
                task=task,
                optimizer=optimizer,
                arguments=arguments,
                seed=TUNING_SEED,
                limit=limit,
            )
            found.append(run)
            if run["steps"]:
                limit = min(limit or run["steps"], run["steps"])
        return min(found, key=_rank)["arguments"]

    def measure(self, task: str, optimizers: Sequence[str]) -> None:
        """Makes all runs of a task, those of the seeds in turn."""
        best = {name: self.best(task, name) for name in optimizers}
        for seed in SEEDS:
            for name, arguments in best.items():
                self.made(
                    task=task, optimizer=name, arguments=arguments, seed=seed
                )


def _rank(record: dict) -> tuple[float, float]:
    """Returns (steps, last loss): less is better."""
    steps = record["steps"] or float("inf")
    diverged = "failure" in record or not record["curve"]
    return steps, float("inf") if diverged else record["curve"][-1][1]


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
    given = ", ".join(f"{k} {v}" for k, v in record["arguments"].items())
    name = f"{record['task']}, {record['optimizer']}, seed {record['seed']}"
    return f"{name}: {record.get('failure', status)}; {given or 'as it comes'}"
