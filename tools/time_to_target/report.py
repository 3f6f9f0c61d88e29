"""The table, the performance profile and the pictures."""

import math
import pathlib
import statistics
from collections.abc import Iterable

from tools.time_to_target import runs, settings, tasks

Row = dict[str, dict]  # By the name of an optimizer, its medians.
_MEASURES = ("steps", "seconds", "processor_seconds")


def medians(records: Iterable[dict]) -> dict:
    """Returns the medians of the seeds; infinite where most missed the target.

    Args:
        records: Runs of one optimizer with one setting.
    """
    records = list(records)
    found = {
        key: statistics.median(
            math.inf if r[key] is None else r[key] for r in records
        )
        for key in _MEASURES
    }
    found["first_step_seconds"] = statistics.median(
        r["first_step_seconds"] for r in records
    )
    found["peak_mib"] = statistics.median(r["peak_mib"] for r in records)
    found["reached"] = sum(r["steps"] is not None for r in records)
    found["arguments"] = records[0]["arguments"]
    return found


def rows(records: list[dict]) -> dict[str, Row]:
    """Returns the medians of each optimizer, by the name of the task."""
    found: dict[str, Row] = {}
    for task in tasks.TASKS:
        for name in settings.SETTINGS:
            of_seeds = [
                r
                for r in records
                if (r["task"], r["optimizer"]) == (task, name)
                and r["seed"] in runs.SEEDS
            ]
            if of_seeds:
                found.setdefault(task, {})[name] = medians(of_seeds)
    return found


def ratios(table: dict[str, Row], measure: str) -> dict[str, float]:
    """Returns K-FAC's part of the best peer's, by task; NaN without a peer."""
    found = {}
    for task, row in table.items():
        peers = [row[p][measure] for p in settings.PEERS if p in row]
        if "kfac" in row and peers and math.isfinite(min(peers)):
            found[task] = row["kfac"][measure] / min(peers)
    return found


def geometric_mean(values: Iterable[float]) -> float:
    """Returns it; infinite where a value is, NaN where there is none."""
    values = list(values)
    if not values:
        return math.nan
    if math.inf in values:
        return math.inf
    return math.exp(statistics.mean(map(math.log, values)))


def markdown(table: dict[str, Row]) -> str:
    """Returns the table, and the ratios below it."""
    head = (
        "task | optimizer | steps | seconds | first step | processor seconds "
        "| MiB | reached | settings"
    )
    lines = [f"| {head} |", "|" + " --- |" * (head.count("|") + 1)]
    for task, row in table.items():
        for name, found in row.items():
            cells = [task, name, f"{found['steps']:g}"]
            cells += [f"{found['seconds']:.1f}"]
            cells += [f"{found['first_step_seconds']:.1f}"]
            cells += [f"{found['processor_seconds']:.1f}"]
            cells += [f"{found['peak_mib']:.0f}"]
            cells += [f"{found['reached']} of {len(runs.SEEDS)}"]
            given = found["arguments"].items()
            cells += [", ".join(f"{k} {v}" for k, v in given) or "as it comes"]
            lines.append(f"| {' | '.join(cells)} |")
    for measure in ("steps", "seconds"):
        every = ratios(table, measure)
        for label, names in (
            ("tasks", [t for t in every if t not in tasks.KEPT]),
            ("tasks that were kept", [t for t in every if t in tasks.KEPT]),
        ):
            of_group = [every[name] for name in names]
            ahead = sum(value < 1 for value in of_group)
            lines += [
                "",
                f"{measure} over the best peer's, {len(of_group)} {label}: "
                f"{geometric_mean(of_group):.2f} in the geometric mean, "
                f"ahead on {ahead}",
            ]
    return "\n".join(lines)


def draw(table: dict[str, Row], path: pathlib.Path) -> None:
    """Draws the performance profile (Dolan and More 2002) of the seconds.

    A curve shows on which share of the tasks an optimizer took at most so many
    times the least seconds of all.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, measure in zip(panels, ("steps", "seconds")):
        for name in settings.SETTINGS:
            of_tasks = sorted(
                row[name][measure] / least
                if name in row and math.isfinite(least)
                else math.inf
                for row in table.values()
                for least in [min(r[measure] for r in row.values())]
            )
            finite = [x for x in of_tasks if math.isfinite(x)]
            if not finite:
                continue
            shares = [(i + 1) / len(of_tasks) for i in range(len(finite))]
            axes.step(
                [1, *finite, 10],
                [0, *shares, shares[-1]],
                where="post",
                label=name,
            )
        axes.set(xscale="log", xlim=(1, 10), ylim=(0, 1.02))
        axes.set(xlabel=f"{measure}, times the least", ylabel="share of tasks")
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
    panels[0].legend()
    figure.savefig(path, dpi=150)


def draw_curves(records: list[dict], path: pathlib.Path) -> None:
    """Draws the training loss against seconds, a panel for each task."""
    from matplotlib.figure import Figure

    shown = [r for r in records if r["seed"] == runs.SEEDS[0] and r["curve"]]
    names = [t for t in tasks.TASKS if any(r["task"] == t for r in shown)]
    if not names:
        return
    columns = min(4, len(names))
    high = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4 * columns, 3 * high), layout="constrained")
    panels = figure.subplots(high, columns, squeeze=False).flat
    for axes, task in zip(panels, names):
        for i, name in enumerate(settings.SETTINGS):
            for r in shown:
                if (r["task"], r["optimizer"]) == (task, name):
                    _, loss, seconds = zip(*r["curve"])
                    axes.plot(seconds, loss, color=f"C{i}", label=name)
        axes.axhline(tasks.TASKS[task].target, color="gray", linewidth=0.8)
        axes.set(yscale="log", title=task, xlabel="seconds")
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)
