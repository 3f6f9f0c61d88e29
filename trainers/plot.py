"""Pictures of runs."""

import pathlib
from collections.abc import Sequence

import numpy as np

_NAMES = {
    "kfac": "K-FAC",
    "kfac_without_momentum": "K-FAC without momentum",
    "momentum": "SGD with momentum",
    "nesterov": "SGD, Nesterov",
    "sgd": "SGD",
    "adam": "Adam",
    "adam_without_momentum": "Adam without momentum",
    "adamw": "AdamW",
    "muon": "Muon",
}


def comparison(
    path: pathlib.Path,
    title: str,
    losses: dict[str, list[float]],
    records: dict[str, list[dict[str, float]]],
) -> None:
    """Draws training loss and test error against the step, as a PNG.

    Args:
        path: The file.
        title: Of the picture.
        losses: Training loss of each step, by optimizer.
        records: The log of each optimizer.
    """
    from matplotlib.ticker import LogFormatter

    figure, (left, right) = _figure(1, 2, (10, 4.2))
    for i, name in enumerate(losses):
        values, color = np.asarray(losses[name]), f"C{i}"
        steps = np.arange(1, len(values) + 1)
        left.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        left.plot(
            steps,
            _smooth(values, max(1, len(values) // 20)),
            color=color,
            linewidth=2,
            label=_NAMES[name],
        )
        errors = 100 * (1 - _column(records[name], "val_accuracy"))
        right.plot(
            _column(records[name], "step"),
            errors,
            color=color,
            linewidth=2,
            marker="o",
            markersize=4,
            label=f"{_NAMES[name]}: {errors[-1]:.1f} %",
        )
    left.set(title="Training loss", ylabel="cross-entropy (nats)")
    right.set(title="Test error", ylabel="error (%)")
    for axes in (left, right):
        axes.set(xlabel="step", yscale="log")
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        axes.legend()
    plain = LogFormatter(minor_thresholds=(3, 0.6))
    right.yaxis.set_major_formatter(plain)
    right.yaxis.set_minor_formatter(plain)
    figure.suptitle(title)
    figure.savefig(path, dpi=150, format="png")


def curves(
    path: pathlib.Path, title: str, records: Sequence[dict[str, float]]
) -> None:
    """Draws accuracy, loss and learning rate against the step, as a PNG.

    As figure 3 of Osawa et al. 2019, and with the loss.

    Args:
        path: The file.
        title: Of the picture.
        records: The log.
    """
    figure, panels = _figure(3, 1, (6.4, 8))
    steps = _column(records, "step")
    marker = "o" if len(records) < 50 else None
    for axes, metric in zip(panels, ("accuracy", "loss")):
        scale = 100 if metric == "accuracy" else 1
        for kind, prefix in (("training", ""), ("evaluation", "val_")):
            values = scale * _column(records, prefix + metric)
            axes.plot(
                steps,
                values,
                marker=marker,
                markersize=3,
                label=f"{kind}: {values[-1]:.4g}",
            )
        axes.legend()
    panels[0].set(ylabel="accuracy (%)")
    panels[1].set(ylabel="loss (nats)")
    panels[2].plot(
        steps, _column(records, "learning_rate"), color="C2", marker=marker,
        markersize=3,
    )  # fmt: skip
    panels[2].set(xlabel="step", ylabel="learning rate")
    for axes in panels:
        axes.grid(alpha=0.3, linewidth=0.5)
    figure.suptitle(title)
    figure.savefig(path, dpi=150, format="png")


def _figure(rows, columns, size):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, sharex=True)


def _column(records, key):
    return np.array([record[key] for record in records])


def _smooth(values, window):
    """Returns the mean over up to `window` steps to each step."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
