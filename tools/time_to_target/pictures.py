"""The performance profile, and the losses against seconds."""

import math
import pathlib

from tools.time_to_target import runs, tasks
from tools.time_to_target.studies import Study
from tools.time_to_target.tables import Row
from trainers import files


def draw_profile(
    study: Study, table: dict[str, Row], path: pathlib.Path
) -> None:
    """Draws performance profiles (Dolan and More 2002) of steps and seconds.

    A curve shows on which share of the tasks an arm took at most so many times
    the least of all.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, measure in zip(panels, ("steps", "seconds")):
        for label in study.arms:
            of_tasks = sorted(
                row[label][measure] / least
                if label in row and math.isfinite(least)
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
                label=label,
            )
        axes.set(xscale="log", xlim=(1, 10), ylim=(0, 1.02))
        axes.set(xlabel=f"{measure}, times the least", ylabel="share of tasks")
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
    panels[0].legend()
    files.write_figure(path, figure)


def draw_curves(
    study: Study,
    table: dict[str, Row],
    records: list[dict],
    path: pathlib.Path,
) -> None:
    """Draws the training loss against seconds, a panel for each task."""
    from matplotlib.figure import Figure

    columns = min(4, len(table))
    high = math.ceil(len(table) / columns)
    figure = Figure(figsize=(4 * columns, 3 * high), layout="constrained")
    panels = figure.subplots(high, columns, squeeze=False).flat
    for axes, (task, row) in zip(panels, table.items()):
        for i, (label, found) in enumerate(row.items()):
            for r in runs.of(study, task, label, records):
                first = r["seed"] == study.seeds[0] and r["curve"]
                if first and r["arguments"] == found["arguments"]:
                    _, loss, seconds = zip(*r["curve"])
                    axes.plot(seconds, loss, color=f"C{i % 10}", label=label)
        target = tasks.TASKS[task].target
        if study.steps is None and target is not None:
            axes.axhline(target, color="gray", linewidth=0.8)
        axes.set(yscale="log", title=task, xlabel="seconds")
    figure.axes[0].legend()
    files.write_figure(path, figure, dpi=120)
