"""Pictures of a study: Zhang et al. 2019, figures 5 to 8; Ma et al. 2019."""

from collections.abc import Callable

import numpy as np

from tools.sweep import analysis
from tools.sweep.analysis import Result
from tools.sweep.trials import Study


def _grid(rows: int, columns: int, side: float = 3.0, **shared):
    """Returns a figure and the axes of its panels, [rows, columns]."""
    from matplotlib.figure import Figure

    size = (max(side * columns, 5), side * rows)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def _figure(panels: int = 1, **shared):
    """Returns a figure and the axes of its panels, in a row."""
    figure, axes = _grid(1, panels, 4.4, **shared)
    for one in axes[0]:
        one.grid(alpha=0.3, which="both", linewidth=0.5)
    return figure, axes[0]


def _against_batches(study: Study, *panels, yscale: str = "linear", **more):
    """Makes the batch size what is drawn against."""
    sizes = study.batch_sizes
    for axes in panels:
        axes.set(xlabel="batch size", xscale="log", **more)
        axes.set_xlim(0.8 * sizes[0], 1.25 * sizes[-1])
        axes.set_xticks(sizes, labels=sizes)
        axes.minorticks_off()
        axes.tick_params(axis="x", labelsize="small")
        if any(len(line.get_xdata()) for line in axes.lines):
            axes.set_yscale(yscale)  # Without data there is no logarithm.


def _of_arms(study: Study, found: list[Result]):
    """Yields (color, label, results) of each arm that has some."""
    for i, label in enumerate(study.arms):
        of_arm = [r for r in found if r.label == label]
        if of_arm:
            yield f"C{i}", label, of_arm


def steps(study: Study, found: list[Result], train_size: int):
    """Steps and epochs to the target, against batch size."""
    figure, (left, right) = _figure(2)
    for color, label, of_arm in _of_arms(study, found):
        reached = [r for r in of_arm if r.steps]
        sizes = [r.batch_size for r in reached]
        style = {"color": color, "marker": "o", "markersize": 3}
        left.plot(sizes, [r.steps for r in reached], label=label, **style)
        right.plot(sizes, [r.epochs for r in reached], label=label, **style)
        for r in reached:  # All seeds.
            values = [run["steps"] for run in r.runs]
            left.plot(
                [r.batch_size] * 2, [min(values), max(values)], color=color
            )
        if reached:
            ideal = [reached[0].steps * sizes[0] / size for size in sizes]
            left.plot(sizes, ideal, color=color, linestyle=":", linewidth=0.8)
    _against_batches(study, left, right, yscale="log")
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
    figure, (axes,) = _figure()
    for color, label, of_arm in _of_arms(study, found):
        ratio = analysis.speedup(of_arm)
        sizes = list(ratio)
        axes.plot(sizes, list(ratio.values()), "o-", color=color, label=label)
    sizes = np.asarray(study.batch_sizes)
    axes.plot(sizes, sizes / sizes[0], "k:", linewidth=0.8, label="ideal")
    _against_batches(study, axes, yscale="log", ylabel="speed-up ratio")
    axes.legend(fontsize="small")
    return figure


def stages(study: Study, found: list[Result], train_size: int):
    """Steps and speed-up to the targets of Ma, IV-C: figures 3 and 4.

    None where trials end at the target, or the rate is not decayed in steps.
    """
    metric = "loss" if study.metric.endswith("loss") else "val_accuracy"
    worst = analysis.worst(found, metric)
    if worst is None or study.stop:
        return None
    run = study.run(worst["arm"], worst["batch_size"])
    if run.args.schedule != "steps":
        return None
    ends = [run.steps.boundary(place) for place in run.args.decay_at]
    targets = analysis.stage_targets(worst["curve"], metric, ends)
    figure, rows = _grid(2, len(targets), sharex=True)
    for target, (top, bottom) in zip(targets, rows.T):
        for color, label, of_arm in _of_arms(study, found):
            at = analysis.fewest_steps(of_arm, metric, target)
            sizes, steps = np.array([*at.keys()]), np.array([*at.values()])
            top.plot(sizes, steps, "o-", color=color, label=label)
            if len(at):
                bottom.plot(sizes, steps[0] / steps, "o-", color=color)
                bottom.plot(sizes, sizes / sizes[0], "k:", linewidth=0.8)
        top.set(title=f"{metric} {target:.3g}")
        _against_batches(study, top, bottom, yscale="log")
    rows[0][0].set(ylabel="steps")
    rows[1][0].set(ylabel="speed-up ratio")
    rows[0][0].legend(fontsize="small")
    return figure


def best(study: Study, found: list[Result], train_size: int):
    """The best loss and accuracy against batch size: Ma, figure 2."""
    figure, panels = _figure(2)
    for axes, metric in zip(panels, ("loss", "val_accuracy")):
        for color, label, of_arm in _of_arms(study, found):
            of_arm = [r for r in of_arm if r.sound]
            values = [analysis.best_value(r, metric) for r in of_arm]
            sizes = [r.batch_size for r in of_arm]
            axes.plot(sizes, values, "o-", color=color, label=label)
        end = "at the target or the end" if study.stop else "at the end"
        scale = "log" if metric == "loss" else "linear"
        _against_batches(study, axes, yscale=scale)
        axes.set(ylabel=f"best {metric} {end}")
    panels[0].legend(fontsize="small")
    return figure


def curves(study: Study, found: list[Result], train_size: int):
    """The best trial of each batch size, by epoch and by step: Ma, A."""
    from matplotlib import colormaps

    arms = list(_of_arms(study, found))
    figure, panels = _grid(2, len(arms), sharey=True)
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(study.batch_sizes)))
    for column, (_, label, of_arm) in zip(panels.T, arms):
        for r in of_arm:
            if r.best is None:
                continue
            step = np.asarray(r.best["curve"]["step"])
            values = r.best["curve"][study.metric]
            color = colors[study.batch_sizes.index(r.batch_size)]
            epochs = step * r.batch_size / train_size
            column[0].plot(epochs, values, color=color, label=r.batch_size)
            column[1].plot(step, values, color=color)
        column[0].set(title=label, xlabel="epoch", xscale="log")
        column[1].set(xlabel="step", xscale="log")
    for row in panels:
        row[0].set(ylabel=study.metric)
        if study.metric.endswith("loss"):
            row[0].set(yscale="log")
    panels[0][0].legend(fontsize="x-small", title="batch size")
    return figure


def learning_rate(study: Study, found: list[Result], train_size: int):
    """The best effective learning rate against batch size: Zhang, fig. 8."""
    figure, (axes,) = _figure()
    for color, label, of_arm in _of_arms(study, found):
        of_arm = [r for r in of_arm if r.learning_rate]
        sizes = [r.batch_size for r in of_arm]
        rates = [r.learning_rate for r in of_arm]
        axes.plot(sizes, rates, "o-", color=color, label=label)
    _against_batches(study, axes, yscale="log")
    axes.set(ylabel="best learning rate / (1 - momentum)")
    axes.legend(fontsize="small")
    return figure


def damping(study: Study, found: list[Result], train_size: int):
    """What each learning rate and damping comes to: Ma, figure 5.

    Steps where trials end at the target, else the last accuracy.
    """
    maps = [r for r in found if "damping" in study.space(r.label) and r.best]
    if not maps:
        return None
    from matplotlib.colors import LogNorm

    ends = [t["curve"]["step"][-1] for r in maps for t in r.sound]
    least, most = min(ends), max(*ends, min(ends) + 1)
    rows = len({r.label for r in maps})
    figure, panels = _grid(rows, -(-len(maps) // rows), 2.6)
    panels = panels.ravel()
    for axes, r in zip(panels, maps):
        sound = r.sound
        if study.stop:
            values, label = [t["curve"]["step"][-1] for t in sound], "steps"
            scale = {"norm": LogNorm(least, most), "cmap": "viridis_r"}
        else:
            label = "val_accuracy"
            values = [t["curve"][label][-1] for t in sound]
            scale = {"vmin": 0.5, "vmax": 1.0}
        shown = axes.scatter(*_places(sound), c=values, s=12, **scale)
        failed = [t for t in r.tried if t not in sound]
        axes.plot(*_places(failed), "rx", markersize=4)
        axes.set(xscale="log", yscale="log")
        axes.set_title(f"{r.label}, {r.batch_size}", fontsize="small")
    for axes in panels[len(maps) :]:
        axes.remove()
    panels[0].set(xlabel="learning rate", ylabel="damping")
    figure.colorbar(shown, ax=panels[: len(maps)], label=label)
    figure.suptitle("x: diverged", fontsize="small")
    return figure


def _places(tried: list[dict]) -> tuple[list[float], list[float]]:
    """Returns the learning rates and the dampings of trials."""
    settings = [t["settings"] for t in tried]
    names = ("learning_rate", "damping")
    return tuple([s[name] for s in settings] for name in names)


def robustness(study: Study, found: list[Result], train_size: int):
    """All trials after as many epochs, and steps: Ma, figure 6.

    Those that failed count as accuracy 0.
    """
    arms = list(_of_arms(study, found))
    ends = [
        (r.batch_size, max(t["curve"]["step"][-1] for t in r.sound))
        for r in found
        if r.sound
    ]
    if not ends:
        return None
    epochs = min(size * end for size, end in ends) / train_size
    least = min(end for _, end in ends)
    figure, panels = _grid(2, len(arms), sharey=True)
    for (_, label, of_arm), (top, bottom) in zip(arms, panels.T):
        sizes = [r.batch_size for r in of_arm]
        by_epochs = [
            analysis.accuracies_at(r, epochs * train_size / r.batch_size)
            for r in of_arm
        ]
        by_steps = [analysis.accuracies_at(r, least) for r in of_arm]
        for axes, values in ((top, by_epochs), (bottom, by_steps)):
            axes.boxplot(values, tick_labels=sizes)
            axes.tick_params(axis="x", labelrotation=90)
        top.set_title(label, fontsize="small")
    panels[0][0].set(ylabel=f"val_accuracy after {epochs:.3g} epochs")
    panels[1][0].set(ylabel=f"val_accuracy after {least} steps")
    return figure


def prediction(
    study: Study, found: list[Result], predicted: dict[str, dict[int, int]]
):
    """Steps that the noisy quadratic model predicts, and those measured."""
    figure, panels = _figure(2, sharey=True)
    for color, label, of_arm in _of_arms(study, found):
        if label not in predicted:
            continue
        points = {r.batch_size: r.steps for r in of_arm if r.steps}
        said = {b: s for b, s in predicted[label].items() if s}
        style = {"color": color, "label": label}
        panels[0].plot(list(points), list(points.values()), "o-", **style)
        panels[1].plot(list(said), list(said.values()), "s--", **style)
    titles = ("measured", "predicted by the noisy quadratic model")
    for axes, title in zip(panels, titles):
        _against_batches(study, axes, yscale="log", title=title)
    panels[0].set(ylabel=f"steps to {study.metric} {study.target:g}")
    panels[0].legend(fontsize="small")
    return figure


FIGURES: dict[str, Callable] = {
    "steps": steps,
    "speedup": speedup,
    "stages": stages,
    "best": best,
    "curves": curves,
    "learning_rate": learning_rate,
    "damping": damping,
    "robustness": robustness,
}
