"""What all configurations come to: Ma et al. 2019, figures 5, 6, 9 and 10."""

import math
import statistics

from tools import markdown_tables
from tools.sweep import analysis, curves, panels
from tools.sweep.analysis import Result
from tools.sweep.trials import Study

GOOD = 0.8  # The accuracy that Ma et al. draw the line at: IV-D.


def ends(result: Result) -> int:
    """Returns the last step of any trial of a cell, 0 if there is none."""
    steps = [r["curve"]["step"][-1] for r in result.tried if measured(r)]
    return max(steps, default=0)


def measured(record: dict) -> bool:
    """Returns whether anything was measured of a trial."""
    return bool(record["curve"].get("step"))


def given(found: list[Result], train_size: int) -> tuple[list, list]:
    """Returns the epochs, and the steps, that the cells were given."""
    cells = [(r.batch_size, end) for r in found if (end := ends(r))]
    return [size * end / train_size for size, end in cells], [
        end for _, end in cells
    ]


def budgets(amounts: list[float]) -> list[float]:
    """Returns a quarter, half and all of the least amount, and the most."""
    least, most = min(amounts), max(amounts)
    return sorted({least / 4, least / 2, least, most})


def _panels(found, train_size):
    """Returns title, and groups of (name, results, step of a batch size)."""
    in_epochs, in_steps = map(budgets, given(found, train_size))

    def of_epochs(epochs):
        return lambda r: epochs * train_size / r.batch_size

    return (
        ("at the end of each batch size's budget", [("", lambda r: math.inf)]),
        ("after epochs", [(f"{e:.3g}", of_epochs(e)) for e in in_epochs]),
        ("after steps", [(f"{s:.0f}", lambda r, s=s: s) for s in in_steps]),
    )


def robustness(study: Study, found: list[Result], train_size: int):
    """All configurations of each batch size, as boxes: Ma, figures 6 and 10.

    Accuracy above, training loss below; at the end, after some numbers of
    epochs, and of steps. Batch sizes that no trial has taken so far are left
    out of a group. Trials that failed count as what was last measured of them.
    """
    arms = list(panels.of_arms(study, found))
    if not any(ends(r) for r in found):
        return None
    columns = _panels(found, train_size)
    figure, axes = panels.grid(2 * len(arms), 3, 3.4)
    colors = panels.batch_colors(study)
    for i, (_, label, of_arm) in enumerate(arms):
        for row, metric in enumerate(("val_accuracy", "loss")):
            for j, (title, groups) in enumerate(columns):
                panel = axes[2 * i + row][j]
                _boxes(panel, of_arm, metric, groups, colors)
                panel.set(ylabel=metric if j == 0 else None, xlabel=title)
                if row == 0:
                    panel.set_title(label, fontsize="small")
    failed = sum(len(r.tried) - len(r.sound) for r in found)
    lost = sum(not measured(r) for f in found for r in f.tried)
    figure.suptitle(
        f"{failed} trials that failed: by what was last measured of them; of "
        f"{lost} nothing was",
        fontsize="small",
    )
    return figure


def _boxes(panel, of_arm, metric, groups, colors):
    """Draws a box for each batch size in each group."""
    ticks, place = {}, 0.0
    for name, at in groups:
        start = place
        for r in of_arm:
            step = at(r)
            values = analysis.values_at(r, metric, step)
            enough = math.isinf(step) or ends(r) >= 0.99 * step
            if values and enough:
                drawn = panel.boxplot(
                    [values], positions=[place], widths=0.7, patch_artist=True
                )
                drawn["boxes"][0].set_facecolor(colors[r.batch_size])
                if not name:
                    ticks[place] = str(r.batch_size)
                place += 1
        if name:
            ticks[(start + place - 1) / 2] = name
            place += 1
    panel.set_xticks(list(ticks), labels=list(ticks.values()))
    panel.tick_params(axis="x", labelrotation=60, labelsize="small")
    if metric == "loss":
        panel.set_yscale("log")


def table(found: list[Result], train_size: int) -> str:
    """Returns the share of configurations that are good, in Markdown.

    Of those with a validation accuracy of `GOOD` at the end, and after as many
    epochs, and steps, as the cell with the least was given.
    """
    in_epochs, in_steps = map(min, given(found, train_size))
    head = ["optimizer", "batch size", "configurations"]
    head += [f"{GOOD:g} or more at the end", f"after {in_epochs:.3g} epochs"]
    head += [f"after {in_steps:.0f} steps", "median at the end"]
    rows = []
    for r in found:
        shares = []
        for step in (math.inf, in_epochs * train_size / r.batch_size, in_steps):
            values = analysis.values_at(r, "val_accuracy", step)
            good = sum(v >= GOOD for v in values)
            shares.append(f"{good / len(r.tried):.0%}" if values else "-")
        values = analysis.values_at(r, "val_accuracy")
        median = f"{statistics.median(values):.3g}" if values else "-"
        rows.append([r.label, r.batch_size, len(r.tried), *shares, median])
    return markdown_tables.table(head, rows)


def damping(
    study: Study, found: list[Result], train_size: int, best: bool = True
):
    """What each learning rate and damping comes to.

    Steps where trials end at the target, else the best accuracy achieved (Ma et
    al. 2019, figure 9), or the last one (figure 5).

    Args:
        study, found, train_size: As everywhere.
        best: Which of the two.
    """
    maps = [r for r in found if "damping" in study.space(r.label) and r.best]
    if not maps or study.stop and not best:
        return None
    from matplotlib.colors import LogNorm

    last = [t["curve"]["step"][-1] for r in maps for t in r.sound]
    least, most = min(last), max(*last, min(last) + 1)
    rows = len({r.label for r in maps})
    figure, axes = panels.grid(rows, -(-len(maps) // rows), 2.6)
    axes = axes.ravel()
    for panel, r in zip(axes, maps):
        if study.stop:
            values = [t["curve"]["step"][-1] for t in r.sound]
            label = "steps"
            scale = {"norm": LogNorm(least, most), "cmap": "viridis_r"}
        else:
            label = ("best" if best else "last") + " val_accuracy"
            values = [_accuracy(t["curve"], best) for t in r.sound]
            scale = {"vmin": 0.5, "vmax": 1.0}
        shown = panel.scatter(*_places(r.sound), c=values, s=12, **scale)
        failed = [t for t in r.tried if t not in r.sound]
        panel.plot(*_places(failed), "rx", markersize=4)
        panel.set(xscale="log", yscale="log")
        panel.set_title(f"{r.label}, {r.batch_size}", fontsize="small")
    for panel in axes[len(maps) :]:
        panel.remove()
    axes[0].set(xlabel="learning rate", ylabel="damping")
    figure.colorbar(shown, ax=axes[: len(maps)], label=label)
    figure.suptitle("x: failed", fontsize="small")
    return figure


def _accuracy(curve, best):
    if best:
        return curves.best_value(curve, "val_accuracy")
    return curve["val_accuracy"][-1]


def _places(tried: list[dict]) -> tuple[list[float], list[float]]:
    """Returns the learning rates and the dampings of trials."""
    settings = [t["settings"] for t in tried]
    names = ("learning_rate", "damping")
    return tuple([s[name] for s in settings] for name in names)
