"""The medians of the seeds, and tables of them."""

import math
import statistics
from collections.abc import Iterable

from tools import markdown_tables
from tools.time_to_target import runs, tasks
from tools.time_to_target.studies import Study

Row = dict[str, dict]  # By the label of an arm, its medians.


def medians(records: Iterable[dict]) -> dict:
    """Returns the medians of the seeds; infinite where most missed the target.

    Args:
        records: Runs of one task and one optimizer with one setting.
    """
    records = list(records)

    def median(values):
        return statistics.median(math.inf if v is None else v for v in values)

    found = {
        key: median(r[key] for r in records)
        for key in (
            "steps",
            "seconds",
            "processor_seconds",
            "first_step_seconds",
            "peak_mib",
            "state_mib",
        )
    }
    found["loss"] = median(map(runs.loss, records))
    found["whole_seconds"] = median(
        r["curve"][-1][2] if r["curve"] else None for r in records
    )
    found["later_step_seconds"] = median(map(_later_step, records))
    worst = [r["worst_after"] for r in records if r["worst_after"] is not None]
    found["worst_after"] = max(worst, default=math.nan)
    found["reached"] = sum(r["steps"] is not None for r in records)
    found["arguments"] = records[0]["arguments"]
    return found


def _later_step(record: dict) -> float | None:
    """Returns the mean seconds of a step but the first."""
    if not record["curve"] or record["curve"][-1][0] < 2:
        return None
    steps, _, seconds = record["curve"][-1]
    return (seconds - record["first_step_seconds"]) / (steps - 1)


def rows(study: Study, records: list[dict]) -> dict[str, Row]:
    """Returns the medians of each arm, by the name of the task."""
    found: dict[str, Row] = {}
    for task in study.tasks:
        for label in study.arms:
            of_seeds = _of_seeds(study, task, label, records)
            if of_seeds:
                found.setdefault(task, {})[label] = medians(of_seeds)
    return found


def _of_seeds(study, task, label, records) -> list[dict]:
    """Returns the runs of an arm's best setting."""
    settings = study.arms[label].settings
    arguments = settings[0]
    if len(settings) > 1:
        tried = runs.tried(study, task, label, records)
        if not tried:
            return []
        arguments = runs.best(tried)["arguments"]
    return [
        r
        for r in runs.of(study, task, label, records)
        if r["arguments"] == arguments and r["seed"] in study.seeds
    ]


# From a heading to the cell of medians.
_TARGET_COLUMNS = {
    "steps": lambda r: f"{r['steps']:g}",
    "seconds": lambda r: f"{r['seconds']:.1f}",
    "first step": lambda r: f"{r['first_step_seconds']:.1f}",
    "processor seconds": lambda r: f"{r['processor_seconds']:.1f}",
    "MiB": lambda r: f"{r['peak_mib']:.0f}",
}
_STEPS_COLUMNS = {
    "loss": lambda r: f"{r['loss']:.4g}",
    "seconds": lambda r: f"{r['whole_seconds']:.1f}",
    "first step": lambda r: f"{r['first_step_seconds']:.1f}",
    "later step, ms": lambda r: f"{1e3 * r['later_step_seconds']:.0f}",
    "MiB of state": lambda r: f"{r['state_mib']:.1f}",
    "MiB": lambda r: f"{r['peak_mib']:.0f}",
}


def markdown(study: Study, table: dict[str, Row]) -> str:
    """Returns the table: steps to the targets, or losses after the steps."""
    columns = dict(_TARGET_COLUMNS if study.steps is None else _STEPS_COLUMNS)
    seeds = len(study.seeds)
    if study.steps is None:
        columns["reached"] = lambda r: f"{r['reached']} of {seeds}"
    head = ["task", "optimizer", *columns]
    if study.stay:
        head.append("worst after / target")
    head.append("settings")
    rows = []
    for task, row in table.items():
        for label, found in row.items():
            cells = [task, label, *(cell(found) for cell in columns.values())]
            if study.stay:
                cells.append(f"{worst(task, found):.2f}")
            given = found["arguments"].items()
            cells += [", ".join(f"{k} {v}" for k, v in given) or "as it comes"]
            rows.append(cells)
    return markdown_tables.table(head, rows)


def worst(task: str, found: dict) -> float:
    """Returns the largest loss over as many steps again as the target took, by
    the target; NaN where no run stayed."""
    return found["worst_after"] / (tasks.TASKS[task].target or math.nan)
