"""What a run says of itself at its end."""

import pathlib
from collections.abc import Sequence
from typing import Any

import keras

from trainers import extras, output, run_files
from trainers.command_line import Run


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
    args = run.args
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
    if args.target_metric is not None:
        found["target"] = {
            "metric": args.target_metric,
            "value": args.target_value,
            "reached": reached,
        }
    return found


def write_curves(
    run: Run,
    directory: pathlib.Path,
    records: Sequence[dict[str, float]],
    result: dict[str, Any],
) -> None:
    """Draws accuracy, loss and learning rate, where there is matplotlib."""
    if not extras.installed("matplotlib"):
        return
    from trainers import plot

    title = f"{run.args.model} on {run.args.dataset}, {result['optimizer']}"
    with output.whole(directory / run_files.CURVES) as path:
        plot.curves(path, title, records)


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
