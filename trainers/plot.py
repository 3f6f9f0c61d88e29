"""The picture of a comparison."""

import pathlib

import numpy as np

_NAMES = {
    "kfac": "K-FAC",
    "momentum": "SGD with momentum",
    "sgd": "SGD",
    "adam": "Adam",
}


def loss(
    path: pathlib.Path,
    title: str,
    losses: dict[str, list[float]],
    accuracies: dict[str, list[float]],
) -> None:
    """Draws training loss and test error against the step, as a PNG.

    Args:
        path: The file.
        title: Of the picture.
        losses: Training loss of each step, by optimizer.
        accuracies: Test accuracy after each epoch, by optimizer.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharex=True)
    for i, name in enumerate(losses):
        values, color = np.asarray(losses[name]), f"C{i}"
        steps = np.arange(1, len(values) + 1)
        epochs = np.asarray(accuracies[name])
        ends = np.arange(1, len(epochs) + 1) * (len(values) // len(epochs))
        left.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        left.plot(
            steps,
            _smooth(values, max(1, len(values) // 20)),
            color=color,
            linewidth=2,
            label=_NAMES.get(name, name),
        )
        right.plot(
            ends,
            100 * (1 - epochs),
            color=color,
            linewidth=2,
            marker="o",
            markersize=4,
            label=f"{_NAMES.get(name, name)}: {100 * (1 - epochs[-1]):.1f} %",
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


def _smooth(values, window):
    """Returns the mean over up to `window` steps to each step."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
