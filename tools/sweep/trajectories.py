"""The best run of each batch size against epochs, steps and seconds."""

import numpy as np

from tools.sweep import analysis, curves, panels, stages
from tools.sweep.analysis import Result
from tools.sweep.trials import Study

UNITS = ("epochs", "steps", "seconds of training")


def chosen(study: Study, result: Result, metric: str) -> dict | None:
    """Returns the run of a cell that is drawn, None if all failed.

    Where trials end at the target it is the first one there; else that with the
    largest accuracy, or the least loss.
    """
    if study.stop:
        return result.best
    return analysis.best_by(result, metric)


def draw(study: Study, found: list[Result], train_size: int, metric: str):
    """A metric of the chosen runs: Ma et al. 2019, figures 1, 7 and 8.

    The losses by steps, and by seconds, are of the runs with the largest
    accuracy, as figure 8 prints them; those by epochs of the runs with the
    least loss (figure 7). A star is the best value of a run; dotted lines are
    the targets of the stages, or that of the study.
    """
    arms = list(panels.of_arms(study, found))
    by = dict.fromkeys(UNITS, "val_accuracy") | {"epochs": metric}
    runs = {
        (r.label, r.batch_size, unit): run
        for r in found
        for unit, of_unit in by.items()
        if (run := chosen(study, r, of_unit))
    }
    timed = all("seconds" in run["curve"] for run in runs.values())
    units = UNITS if timed and runs else UNITS[:2]
    figure, axes = panels.grid(len(units), len(arms), sharey=True)
    colors = panels.batch_colors(study)
    targets = stages.targets(study, found, metric)
    if not targets and metric in study.targets:
        targets = [study.targets[metric]]
    for column, (_, label, _) in zip(axes.T, arms):
        for panel, unit in zip(column, units):
            for size, color in colors.items():
                if run := runs.get((label, size, unit)):
                    x = _along(run["curve"], unit, size / train_size)
                    _draw(panel, x, run["curve"], metric, size, color)
            panel.set(xlabel=unit, xscale="symlog")
            panel.set_xlim(left=0)
            for target in targets:
                panel.axhline(target, color="k", linestyle=":", linewidth=0.7)
        column[0].set_title(label, fontsize="small")
    for panel in axes[:, 0]:
        panel.set(ylabel=metric)
        if curves.sign(metric) > 0:
            panel.set(yscale="log")
    if axes[0][0].lines:
        axes[0][0].legend(fontsize="x-small", title="batch size")
    return figure


def _along(curve: dict, unit: str, epoch: float) -> np.ndarray:
    """Returns where the values of a curve are; `epoch` is that of a step."""
    if unit == "seconds of training":
        return np.asarray(curve["seconds"])
    step = np.asarray(curve["step"])
    return step * epoch if unit == "epochs" else step


def _draw(panel, x, curve, metric, size, color):
    """Draws a run with its star."""
    values = curve[metric]
    at = values.index(curves.best_value(curve, metric))
    panel.plot(x, values, color=color, label=size, linewidth=1)
    panel.plot(x[at], values[at], "*", color=color, markersize=7)
