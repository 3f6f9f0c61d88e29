"""The best run of each batch size against epochs, steps and seconds."""

import numpy as np

from tools.sweep import analysis, curves, panels, stages
from tools.sweep.analysis import Result
from tools.sweep.trials import Study

UNITS = ("epochs", "steps", "seconds of training")


def chosen(study: Study, result: Result, metric: str) -> dict | None:
    """Returns the run of a cell that is drawn, None if all failed.

    Where trials end at the target it is the first one there; else, as Ma et al.
    2019, figures 7 and 8, that with the largest accuracy, or the least loss.
    """
    if study.stop:
        return result.best
    return analysis.best_by(result, metric)


def draw(study: Study, found: list[Result], train_size: int, metric: str):
    """A metric of the chosen runs: Ma et al. 2019, figures 1, 7 and 8.

    A star is the best value of a run; dotted lines are the targets of the
    stages, or that of the study.
    """
    arms = list(panels.of_arms(study, found))
    runs = {
        (r.label, r.batch_size): run
        for r in found
        if (run := chosen(study, r, metric))
    }
    timed = all("seconds" in run["curve"] for run in runs.values())
    units = UNITS if timed and runs else UNITS[:2]
    figure, axes = panels.grid(len(units), len(arms), sharey=True)
    colors = panels.batch_colors(study)
    targets = stages.targets(study, found, metric)
    if not targets and metric in study.targets:
        targets = [study.targets[metric]]
    for column, (_, label, _) in zip(axes.T, arms):
        for size, color in colors.items():
            if (label, size) in runs:
                curve = runs[label, size]["curve"]
                _draw(column, curve, metric, size, train_size, color)
        for panel, unit in zip(column, units):
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


def _draw(column, curve, metric, size, train_size, color):
    """Draws a run in each panel of a column, with its star."""
    values = curve[metric]
    at = values.index(curves.best_value(curve, metric))
    step = np.asarray(curve["step"])
    units = [step * size / train_size, step, curve.get("seconds")]
    for panel, x in zip(column, units):
        panel.plot(x, values, color=color, label=size, linewidth=1)
        panel.plot(x[at], values[at], "*", color=color, markersize=7)
