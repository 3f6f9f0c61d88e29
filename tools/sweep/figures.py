"""Pictures of a study: Zhang et al. 2019, figures 5 to 8; Ma et al. 2019."""

import functools
from collections.abc import Callable

import numpy as np

from tools.sweep import analysis, panels, robustness, stages, trajectories
from tools.sweep.analysis import Result
from tools.sweep.trials import Study


def steps(study: Study, found: list[Result], train_size: int):
    """Steps, epochs and seconds to the target, against batch size.

    Zhang et al. 2019: figure 5 with a metric of the validation split; figures 6
    and 8 with one of the training split.
    """
    timed = any(r.seconds for r in found)
    figure, (left, right, *last) = panels.row(3 if timed else 2)
    for color, label, of_arm in panels.of_arms(study, found):
        reached = [r for r in of_arm if r.steps]
        sizes = [r.batch_size for r in reached]
        style = {"color": color, "marker": "o", "markersize": 3}
        left.plot(sizes, [r.steps for r in reached], label=label, **style)
        right.plot(sizes, [r.epochs for r in reached], label=label, **style)
        for panel in last:
            known = [r for r in reached if r.seconds]
            at = [r.batch_size for r in known]
            panel.plot(at, [r.seconds for r in known], **style)
        for r in reached:  # All seeds.
            values = [run["steps"] for run in r.runs]
            left.plot(
                [r.batch_size] * 2, [min(values), max(values)], color=color
            )
        if reached:
            ideal = [reached[0].steps * sizes[0] / size for size in sizes]
            left.plot(sizes, ideal, color=color, linestyle=":", linewidth=0.8)
    panels.against_batches(study, left, right, *last, yscale="log")
    for panel in last:
        panel.set(ylabel="seconds of training to the target")
    left.set(ylabel="steps to the target")
    right.set(ylabel="epochs to the target")
    left.legend(fontsize="small")
    figure.suptitle(
        f"{study.metric} {study.target:g}; dotted: perfect scaling",
        fontsize="medium",
    )
    return figure


def speedup(study: Study, found: list[Result], train_size: int):
    """The speed-up ratio s(m; m0) against batch size: Ma, figure 4."""
    figure, (axes,) = panels.row()
    for color, label, of_arm in panels.of_arms(study, found):
        ratio = analysis.speedup(of_arm)
        sizes = list(ratio)
        axes.plot(sizes, list(ratio.values()), "o-", color=color, label=label)
    sizes = np.asarray(study.batch_sizes)
    axes.plot(sizes, sizes / sizes[0], "k:", linewidth=0.8, label="ideal")
    panels.against_batches(study, axes, yscale="log", ylabel="speed-up ratio")
    axes.legend(fontsize="small")
    return figure


def best(study: Study, found: list[Result], train_size: int):
    """The best loss and accuracy against batch size: Ma, figure 2."""
    figure, axes_of = panels.row(2)
    for axes, metric in zip(axes_of, ("loss", "val_accuracy")):
        for color, label, of_arm in panels.of_arms(study, found):
            of_arm = [r for r in of_arm if r.sound]
            values = [analysis.best_value(r, metric) for r in of_arm]
            sizes = [r.batch_size for r in of_arm]
            axes.plot(sizes, values, "o-", color=color, label=label)
        until = "until the target or the end" if study.stop else "achieved"
        scale = "log" if metric == "loss" else "linear"
        panels.against_batches(study, axes, yscale=scale)
        axes.set(ylabel=f"best {metric} {until}")
    axes_of[0].legend(fontsize="small")
    return figure


def learning_rate(study: Study, found: list[Result], train_size: int):
    """The best effective learning rate against batch size: Zhang, fig. 7."""
    figure, (axes,) = panels.row()
    for color, label, of_arm in panels.of_arms(study, found):
        of_arm = [r for r in of_arm if r.learning_rate]
        sizes = [r.batch_size for r in of_arm]
        rates = [r.learning_rate for r in of_arm]
        axes.plot(sizes, rates, "o-", color=color, label=label)
    panels.against_batches(study, axes, yscale="log")
    axes.set(ylabel="best learning rate / (1 - momentum)")
    axes.legend(fontsize="small")
    return figure


def prediction(
    study: Study, found: list[Result], predicted: dict[str, dict[int, int]]
):
    """Steps that the noisy quadratic model predicts, and those measured."""
    figure, axes_of = panels.row(2, sharey=True)
    for color, label, of_arm in panels.of_arms(study, found):
        if label not in predicted:
            continue
        points = {r.batch_size: r.steps for r in of_arm if r.steps}
        said = {b: s for b, s in predicted[label].items() if s}
        style = {"color": color, "label": label}
        axes_of[0].plot(list(points), list(points.values()), "o-", **style)
        axes_of[1].plot(list(said), list(said.values()), "s--", **style)
    titles = ("measured", "predicted by the noisy quadratic model")
    for axes, title in zip(axes_of, titles):
        panels.against_batches(study, axes, yscale="log", title=title)
    axes_of[0].set(ylabel=f"steps to {study.metric} {study.target:g}")
    axes_of[0].legend(fontsize="small")
    return figure


FIGURES: dict[str, Callable] = {
    "speedup": speedup,
    "best": best,
    "learning_rate": learning_rate,
    "damping": robustness.damping,
    "damping_end": functools.partial(robustness.damping, best=False),
    "robustness": robustness.robustness,
    **{
        f"{name}_{metric}": functools.partial(draw, metric=metric)
        for metric in ("loss", "val_accuracy")
        for name, draw in (
            ("stages", stages.stages),
            ("curves", trajectories.draw),
        )
    },
}
