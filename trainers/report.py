"""What a run tells: its log, its result, its pictures."""

import csv
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainers import files, launch, run_directory
from trainers.command_line import Run

NAMES = {
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


class Log:
    """The log of an optimizer, which rank 0 writes and prints.

    Args:
        run: The run.
        name: Of the optimizer.
        directory: Where the files are.
        rank: Of this process.

    Attributes:
        records: "step", "epoch", the metrics, "learning_rate", "seconds", one
            for each evaluation.
    """

    def __init__(self, run: Run, name: str, directory: pathlib.Path, rank: int):
        self.records: list[dict[str, float]] = []
        self._name, self._directory, self._rank = name, directory, rank
        self._verbose, self._writer = run.config.verbose, None
        if run.config.tensorboard and rank == 0:
            folder = run.model_dir / run_directory.EVENTS / name
            self._writer = tf.summary.create_file_writer(str(folder))

    def restore(self, records: list[dict[str, float]]) -> None:
        """Sets the records to those of a checkpoint."""
        self.records = records
        if self._rank == 0:
            write_records(self._directory, records)

    def add(self, record: dict[str, float]) -> None:
        """Adds a record to the files, and prints it."""
        self.records.append(record)
        if self._rank > 0:
            return
        write_records(self._directory, self.records)
        if self._verbose:
            shown = [f"{key} {value:.6g}" for key, value in record.items()]
            print(f"{self._name}: {', '.join(shown)}", flush=True)
        if self._writer is not None:
            with self._writer.as_default(step=int(record["step"])):
                for key, value in record.items():
                    tf.summary.scalar(key, value)
            self._writer.flush()


def write_records(
    directory: pathlib.Path, records: Sequence[dict[str, float]]
) -> None:
    """Writes the log: a line of JSON for each record, and a table."""
    with files.whole(directory / run_directory.RECORDS) as partial:
        lines = [json.dumps(files.plain(record)) + "\n" for record in records]
        partial.write_text("".join(lines))
    with (
        files.whole(directory / run_directory.LOG) as partial,
        partial.open("w") as file,
    ):
        columns = list(records[0]) if records else []
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def result(
    run: Run,
    name: str,
    model: keras.Model,
    last: dict[str, float],
    splits: dict[str, dict[str, float]],
    reached: bool,
) -> dict[str, Any]:
    """Returns what the summary says of an optimizer.

    Args:
        run: The run.
        name: Of the optimizer.
        model: The model.
        last: The last record of the log.
        splits: From the split to its loss and accuracy.
        reached: Whether the target is.
    """
    config = run.config
    found = {
        "optimizer": name,
        "settings": run.settings[name],
        "parameters": model.count_params(),
        "steps": last["step"],
        "seconds": last["seconds"],
        "train_loss": last["loss"],
        "train_accuracy": last["accuracy"],
    }
    for split, values in splits.items():
        found |= {f"{split}_{key}": value for key, value in values.items()}
    if config.target_metric is not None:
        found["target"] = {
            "metric": config.target_metric,
            "value": config.target_value,
            "reached": reached,
        }
    return found


def print_result(result: dict[str, Any], split: str, ranks: int) -> None:
    """Prints how it went on a split, and whether the target was reached."""
    print(
        f"{result['optimizer']}: {split} accuracy "
        f"{result[f'{split}_accuracy']:.4f}, {split} loss "
        f"{result[f'{split}_loss']:.4f} after {result['steps']} steps in "
        f"{result['seconds']:.1f} s on {ranks} rank{'s' * (ranks > 1)}"
    )
    target = result.get("target")
    if target is not None:
        reached = "reached" if target["reached"] else "not reached"
        print(f"{target['metric']} of {target['value']}: {reached}")


def print_comparison(results: Sequence[dict[str, Any]], split: str) -> None:
    """Prints a table of the optimizers that were compared.

    Args:
        results: As of `result`.
        split: The split that is shown.
    """
    heads = ["optimizer", f"{split} accuracy", f"{split} loss"]
    heads += ["training loss", "steps", "seconds"]
    rows = [
        [
            NAMES[found["optimizer"]],
            f"{100 * found[f'{split}_accuracy']:.1f} %",
            f"{found[f'{split}_loss']:.3g}",
            f"{found['train_loss']:.2g}",
            f"{found['steps']:,}",
            f"{found['seconds']:.1f}",
        ]
        for found in results
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows)]
    print()
    for name, *cells in (heads, *rows):
        right = (c.rjust(w) for c, w in zip(cells, widths[1:]))
        print(name.ljust(widths[0]), *right, sep="  ")
    print()


def write_curves(
    run: Run,
    directory: pathlib.Path,
    records: Sequence[dict[str, float]],
    name: str,
) -> None:
    """Draws accuracy, loss and learning rate, where there is matplotlib.

    As figure 3 of Osawa et al. 2019, and with the loss; against the step, and
    the seconds above.

    Args:
        run: The run.
        directory: Of the optimizer.
        records: The log.
        name: Of the optimizer.
    """
    if not launch.installed("matplotlib"):
        return
    figure, panels = _figure(3, 1, (6.4, 8), sharex=True)
    steps = _column(records, "step")
    style = {"marker": "o" if len(records) < 50 else None, "markersize": 3}
    for axes, metric in zip(panels, ("accuracy", "loss")):
        scale = 100 if metric == "accuracy" else 1
        for kind, prefix in (("training", ""), ("evaluation", "val_")):
            values = scale * _column(records, prefix + metric)
            label = f"{kind}: {values[-1]:.4g}"
            axes.plot(steps, values, label=label, **style)
        axes.legend()
    panels[0].set(ylabel="accuracy (%)")
    panels[1].set(ylabel="loss (nats)")
    rates = _column(records, "learning_rate")
    panels[2].plot(steps, rates, color="C2", **style)
    panels[2].set(xlabel="step", ylabel="learning rate")
    _add_seconds(panels[0], steps, _column(records, "seconds"))
    for axes in panels:
        axes.grid(alpha=0.3, linewidth=0.5)
    figure.suptitle(f"{run.config.model} on {run.config.dataset}, {name}")
    files.write_figure(directory / run_directory.CURVES, figure)


def _add_seconds(axes, steps, seconds) -> None:
    """Shows above a panel in how many seconds some steps were made."""
    some = np.unique(np.linspace(0, len(steps) - 1, 6).round().astype(int))
    above = axes.secondary_xaxis("top")
    above.set_xticks(steps[some], [f"{x:.3g}" for x in seconds[some]])
    above.set_xlabel("seconds")


def write_comparison(
    run: Run,
    losses: dict[str, list[float]],
    logs: dict[str, list[dict[str, float]]],
) -> pathlib.Path:
    """Writes the training loss of each step, and draws it beside the error.

    Args:
        run: The run.
        losses: Training loss of each step, by optimizer.
        logs: The log of each optimizer.

    Returns:
        The path of the picture, a PNG.
    """
    with (
        files.whole(run.model_dir / "loss.csv") as partial,
        partial.open("w", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["step", *losses])
        rows = itertools.zip_longest(*losses.values())
        writer.writerows([step, *row] for step, row in enumerate(rows))
    figure, (left, middle, right) = _figure(1, 3, (13, 4.2))
    for i, name in enumerate(losses):
        values = np.asarray(losses[name])
        style = {"color": f"C{i}", "linewidth": 2}
        steps = np.arange(1, len(values) + 1)
        left.plot(steps, values, color=f"C{i}", alpha=0.25, linewidth=0.8)
        mean = _smooth(values, max(1, len(values) // 20))
        left.plot(steps, mean, label=NAMES[name], **style)
        errors = 100 * (1 - _column(logs[name], "val_accuracy"))
        style |= {"marker": "o", "markersize": 4}
        style["label"] = f"{NAMES[name]}: {errors[-1]:.1f} %"
        middle.plot(_column(logs[name], "step"), errors, **style)
        right.plot(_column(logs[name], "seconds"), errors, **style)
    left.set(title="Training loss", ylabel="cross-entropy (nats)")
    for axes, unit in ((left, "step"), (middle, "step"), (right, "seconds")):
        axes.set(xlabel=unit, yscale="log")
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        axes.legend()
    for axes in (middle, right):
        axes.set(title="Test error", ylabel="error (%)")
        _label_plainly(axes.yaxis)
    config = run.config
    figure.suptitle(
        f"{config.model} on {config.dataset}, batches of {config.batch_size}"
    )
    path = run.model_dir / "loss.png"
    files.write_figure(path, figure)
    return path


def _label_plainly(axis) -> None:
    """Has a logarithmic axis of percentages say 20 for 2 x 10^1."""
    from matplotlib.ticker import LogFormatter

    plain = LogFormatter(minor_thresholds=(3, 0.6))
    axis.set_major_formatter(plain)
    axis.set_minor_formatter(plain)


def _figure(rows, columns, size, **shared):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **shared)


def _column(records, key):
    return np.array([record[key] for record in records])


def _smooth(values, window):
    """Returns the mean over up to `window` steps to each step."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
