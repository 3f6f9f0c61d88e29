"""Numbered checkpoints: whole .keras files with what else a run needs.

`checkpoints/00000110.keras` is the model after 110 updates, with its optimizer
and all curvature, as `keras.models.load_model` reads it, and two more members:

    run.json      the configuration of the run, the update, the seconds so far,
                  the records of the log
    of_ranks.npz  the variables that each rank has for itself
"""

import io
import json
import os
import pathlib
import zipfile
from typing import Any

import numpy as np

from trainers import files, run_directory

_STATE, _OF_RANKS = "run.json", "of_ranks.npz"
_OF_A_RECORD = {  # What is read of it when a run goes on.
    *("step", "epoch", "learning_rate", "seconds"),
    *("loss", "accuracy", "val_loss", "val_accuracy"),
}


def latest(model_dir: pathlib.Path) -> pathlib.Path | None:
    """Returns the last checkpoint of a run; None if there is none."""
    found = numbered(model_dir)
    return found[-1] if found else None


def numbered(model_dir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the checkpoints of a run, the last one last."""
    return sorted(model_dir.glob(run_directory.CHECKPOINT))


def read(path: pathlib.Path) -> tuple[dict[str, Any], list[list[np.ndarray]]]:
    """Returns the state of the run, and the variables of each rank.

    Raises:
        SystemExit: The file is not whole.
    """
    try:
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()
            if bad is not None:
                raise ValueError(f"{bad} is damaged")
            state = json.loads(file.read(_STATE))
            _check(state)
            arrays = np.load(io.BytesIO(file.read(_OF_RANKS)))
            of_ranks = [
                [arrays[f"{rank}/{i}"] for i in range(state["variables"])]
                for rank in range(state["ranks"])
            ]
    except Exception as error:  # A damaged file raises what it likes.
        raise _corrupt(path, error) from None
    return state, of_ranks


def _corrupt(path, why) -> SystemExit:
    return SystemExit(
        f"--resume: {path} is corrupt ({why}); remove it to go on from the "
        "checkpoint before it"
    )


def _check(state: Any) -> None:
    """Raises ValueError where a run could not go on from a state."""

    def is_count(value, least=0):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and value >= least

    def is_record(value):
        return (
            isinstance(value, dict)
            and is_count(value.get("step"))
            and all(isinstance(v, (int, float)) for v in value.values())
            and value.keys() >= _OF_A_RECORD
        )

    if not isinstance(state, dict):
        raise ValueError(f"{_STATE} is no dictionary")
    seconds, records = state.get("seconds"), state.get("records")
    good = {
        "configuration": isinstance(state.get("configuration"), dict),
        "step": is_count(state.get("step")),
        "variables": is_count(state.get("variables")),
        "ranks": is_count(state.get("ranks"), 1),
        "begun": isinstance(state.get("begun"), bool),
        "seconds": isinstance(seconds, (int, float)) and seconds >= 0,
        "records": isinstance(records, list) and all(map(is_record, records)),
    }
    bad = [f"{key}={state.get(key)!r:.50}" for key in good if not good[key]]
    if bad:
        raise ValueError(f"{_STATE} has {', '.join(bad)}")


def save(
    model_dir: pathlib.Path,
    model,
    ranks,
    state: dict[str, Any],
    keep: int,
) -> pathlib.Path:
    """Writes a checkpoint; all ranks call it after the same update.

    Args:
        model_dir: Of the run; rank 0 writes there.
        model: The compiled `keras.Model`.
        ranks: A `tfkfac.distributed.communicator.Communicator`.
        state: Of the run, with "configuration", "step" and "begun", whether
            metrics go on.
        keep: How many checkpoints stay; -1 for all.

    Returns:
        Its path.
    """
    own = [variable.numpy() for variable in _own_variables(model)]
    of_ranks = ranks.gather_objects(own)
    gather(model)
    path = model_dir / run_directory.CHECKPOINTS / f"{state['step']:08d}.keras"
    if ranks.rank > 0:
        return path
    run_directory.make_folder(path.parent)
    state = {**state, "ranks": len(of_ranks), "variables": len(own)}
    arrays = io.BytesIO()
    named = {
        f"{rank}/{i}": value
        for rank, values in enumerate(of_ranks)
        for i, value in enumerate(values)
    }
    np.savez(arrays, **named)
    with files.whole(path) as partial:
        model.save(partial)
        with zipfile.ZipFile(partial, "a") as file:
            file.writestr(_STATE, json.dumps(state))
            file.writestr(_OF_RANKS, arrays.getvalue())
        with partial.open("rb") as file:
            os.fsync(file.fileno())
    if keep >= 0:
        for old in numbered(model_dir)[: -max(keep, 1)]:
            old.unlink()
    return path


def restore(
    path: pathlib.Path, model, ranks, configuration: dict[str, Any]
) -> tuple[dict[str, Any], list[np.ndarray | None]]:
    """Gives a model and its optimizer what a checkpoint holds.

    On another number of ranks than it was saved on, what each rank had for
    itself (moving statistics, metrics of a begun epoch, states of seed
    generators) is that of rank 0; the seeds of the other ranks stay new.

    Args:
        path: The checkpoint; all ranks read it.
        model: A compiled model of the same configuration.
        ranks: A `tfkfac.distributed.communicator.Communicator`.
        configuration: That of the run.

    Returns:
        The state of the run, and what `assign_own` is to give this rank when
        the ranks have shared the rest.

    Raises:
        SystemExit: The file is not whole, or is of another run.
    """
    state, of_ranks = read(path)
    if found := run_directory.differences(
        configuration, state["configuration"]
    ):
        raise SystemExit(
            f"--resume: {path} is of another run: {'; '.join(found)}; remove "
            "it to go on from the checkpoint before it"
        )
    if state["step"] != int(path.stem):
        raise _corrupt(path, f"{_STATE} has step={state['step']}")
    own = _own_variables(model)
    shapes = (
        [tuple(v.shape) for v in own],
        [value.shape for value in of_ranks[0]],
    )
    if shapes[0] != shapes[1]:
        raise SystemExit(f"--resume: {path} is of another model")
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    try:
        model.load_weights(path)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SystemExit(
            f"--resume: {path} cannot be restored: {reason}"
        ) from error
    same = len(of_ranks) == ranks.size
    values: list[np.ndarray | None] = list(of_ranks[ranks.rank if same else 0])
    metrics = {id(v) for v in model.metrics_variables}
    for i, v in enumerate(own):
        new = ranks.rank > 0 and not same and v.name == "seed_generator_state"
        if new or (id(v) in metrics and not state["begun"]):
            values[i] = None
    return state, values


def assign_own(model, values: list[np.ndarray | None]) -> None:
    """Gives this rank what it had for itself; None leaves a variable as is."""
    for variable, value in zip(_own_variables(model), values):
        if value is not None:
            variable.assign(value)


def gather(model) -> None:
    """Brings the curvature of all ranks to rank 0, which can then save."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if hasattr(optimizer, "gather_curvature"):
        optimizer.gather_curvature()


def _own_variables(model) -> list:
    """Returns the variables that differ between ranks between averages."""
    return [*model.non_trainable_variables, *model.metrics_variables]
