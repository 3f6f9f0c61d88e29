"""What a study comes to, in lines below its table."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable

from tools.time_to_target import runs, tables, tasks
from tools.time_to_target.studies import Study

Table = dict[str, tables.Row]


def ratios(study: Study, table: Table, measure: str) -> dict[str, float]:
    """Returns the part that "kfac" takes of the best peer's, by task.

    A task where no peer has come to the target is left out.
    """
    peers = [n for n, arm in study.arms.items() if arm.optimizer != "kfac"]
    found = {}
    for task, row in table.items():
        of_peers = [row[p][measure] for p in peers if p in row]
        if "kfac" in row and of_peers and math.isfinite(min(of_peers)):
            found[task] = row["kfac"][measure] / min(of_peers)
    return found


def geometric_mean(values: Iterable[float]) -> float:
    """Returns it; infinite where a value is, NaN where there is none."""
    values = list(values)
    if not values:
        return math.nan
    if math.inf in values:
        return math.inf
    return math.exp(statistics.mean(map(math.log, values)))


def _against_peers(study, table, measures) -> list[str]:
    lines = []
    for name, measure in measures.items():
        every = ratios(study, table, measure)
        for label, kept in (("tasks", False), ("tasks that were kept", True)):
            group = [x for t, x in every.items() if (t in tasks.KEPT) == kept]
            if group:
                ahead = sum(value < 1 for value in group)
                lines.append(
                    f"{name} over the best peer's, {len(group)} {label}: "
                    f"{geometric_mean(group):.2f} in the geometric mean, "
                    f"ahead on {ahead}"
                )
    return lines


def _peers(study, table, records):
    return _against_peers(
        study, table, {"steps": "steps", "seconds": "seconds"}
    )


def _after_steps(study, table, records):
    return _against_peers(
        study, table, {"loss": "loss", "seconds": "whole_seconds"}
    )


def _robustness(study, table, records) -> list[str]:
    """Counts the changed settings that reach the target within twice the
    default's steps; a task where the default itself fails counts as missed."""
    lines = []
    for default in study.arms:
        changed = [x for x, arm in study.arms.items() if arm.beside == default]
        within = {
            (label, task): row[label]["steps"]
            <= 2 * row[default]["steps"]
            < math.inf
            for task, row in table.items()
            for label in changed
            if {label, default} <= row.keys()
        }
        if not within:
            continue
        missed = [key for key, reached in within.items() if not reached]
        run = {label for label, _ in within}
        always = run - {label for label, _ in missed}
        lines.append(
            f"{default}: within twice the default's steps are "
            f"{len(within) - len(missed)} of {len(within)} runs; "
            f"{len(always)} of {len(run)} settings are on every task"
        )
        if missed:
            lines[-1] += "; not " + ", ".join(f"{x} on {t}" for x, t in missed)
    return lines


def _invariance(study, table, records) -> list[str]:
    """Returns the steps with inputs in other units by those without."""
    lines = []
    changes = {
        tasks.IN_UNITS: "in other units",
        tasks.SCALED: "in other units, weights drawn as before",
    }
    for (task, row), (suffix, name) in itertools.product(
        table.items(), changes.items()
    ):
        changed = table.get(task + suffix, {})
        for label in (x for x in row if x in changed):
            before, after = row[label]["steps"], changed[label]["steps"]
            lines.append(
                f"{task}, {label}: {before:g} steps, {name} {after:g}, "
                f"ratio {after / before:.2f}"  # NaN where neither comes to it.
            )
    return lines


def _defaults(study, table, records) -> list[str]:
    """Orders the settings by the mean of their ranks on the tasks, from 0 for
    the least loss to 1 for the largest: a default should be good everywhere
    rather than the best somewhere."""
    of_settings: dict[str, list[float]] = {}
    for task in study.tasks:
        for label in study.arms:
            tried = runs.tried(study, task, label, records)
            ordered = sorted(tried, key=runs.loss)
            for place, record in enumerate(ordered):
                given = record["arguments"].items()
                name = ", ".join(f"{k} {v}" for k, v in given)
                rank = place / max(1, len(ordered) - 1)
                of_settings.setdefault(name or "as it comes", []).append(rank)
    best = sorted(of_settings.items(), key=lambda x: statistics.mean(x[1]))
    return [
        f"mean {statistics.mean(r):.2f}, worst {max(r):.2f}: {name}"
        for name, r in best[:10]
    ]


SUMMARIES: dict[str, Callable[[Study, Table, list[dict]], list[str]]] = {
    "peers": _peers,
    "after_steps": _after_steps,
    "robustness": _robustness,
    "invariance": _invariance,
    "defaults": _defaults,
}
