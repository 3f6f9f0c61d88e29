"""What a run would do, without training: --dry_run."""

import dataclasses
import json
from typing import Any

import keras
import tensorflow as tf

import tfkfac
from tfkfac.distributed.loss_scale import unwrapped
from trainers import files, launch, optimizers, train
from trainers.command_line import Run
from trainers.config import Settings
from trainers.flag_definitions import group_of
from trainers.refusals import number_of_ranks


def main(run: Run) -> None:
    """Prints flags, model, steps, schedules and plan on rank 0."""
    if launch.rank() > 0:
        return
    train.configure(run)
    train.check_optimizers(run)
    model = train.make_model(run)
    name = run.config.optimizer
    optimizer = unwrapped(  # Attached to no model, it takes no memory.
        optimizers.make(name, None, run.config, run.settings[name], run.steps)
    )
    values = schedules(run, optimizer)
    plan = plan_of(run, model, optimizer)
    if run.config.json:
        found = {
            "flags": flags_of(run),
            "configuration": run.configuration(),
            "optimizer": optimizer.get_config(),
            "model": {
                "name": model.name,
                "parameters": model.count_params(),
                "layers": layers_of(model),
            },
            "steps": steps_of(run),
            "schedules": values,
            "plan": plan if isinstance(plan, dict) else plan.to_dict(),
        }
        print(json.dumps(files.plain(found), indent=2, default=str))
        return
    print_flags(run)
    print(f"{model.name}: {model.count_params():,} parameters\n")
    print_table([steps_of(run)])
    print()
    changing = {
        key
        for key in values[0]
        if key == "step" or len({row[key] for row in values}) > 1
    }
    print_table(
        [{k: v for k, v in row.items() if k in changing} for row in values]
    )
    print()
    print(plan)


def flags_of(run: Run) -> dict[str, Any]:
    """Returns the values of all flags; settings that are not given are None."""
    found = dataclasses.asdict(run.config)
    del found["settings"]
    settings = dataclasses.asdict(Settings())
    return found | settings | run.settings[run.config.optimizer]


def print_flags(run: Run) -> None:
    """Prints what is set, by the groups of --help, and the settings.

    What is left out is as --help says.
    """
    config = run.config
    groups: dict[str, list[str]] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        shown = field.metadata and field.name not in ("dry_run", "json")
        if shown and value != field.default:
            rows = groups.setdefault(group_of(type(config), field.name), [])
            rows.append(f"  {field.name}: {_shown(value)}")
    groups[f"settings of {config.optimizer}"] = [
        f"  {name}: {_shown(value)}"
        for name, value in run.settings[config.optimizer].items()
    ]
    for group in sorted(groups):
        print(f"{group}:", *groups[group], "", sep="\n")


def _shown(value) -> str:
    """Returns a value as a flag has it, in rounded numbers."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def layers_of(model: keras.Model) -> list[dict[str, Any]]:
    """Returns what a model's summary shows."""
    return [
        {
            "name": layer.name,
            "class": type(layer).__name__,
            "output_shape": [*layer.output.shape]
            if isinstance(layer.output, keras.KerasTensor)
            else None,
            "parameters": layer.count_params(),
        }
        for layer in model.layers
    ]


def steps_of(run: Run) -> dict[str, Any]:
    """Returns how many steps there are, and of what size."""
    ranks = number_of_ranks(run.config)
    micro_steps = run.config.gradient_accumulation_steps
    return {
        "training_examples": run.steps.train_size,
        "counted": _counted(run),
        "ranks": ranks,
        "batch_of_a_rank": run.config.batch_size // (ranks * micro_steps),
        "micro_steps": micro_steps,
        "steps_per_epoch": run.steps.per_epoch,
        "epochs": run.steps.epochs,
        "steps": run.steps.ends(None, run.config.steps)[-1],
    }


def _counted(run):
    """Returns where the number of training examples is from, and if it is not
    that of the run, what is not known."""
    if run.data:
        return "on disk"
    if not run.trainer.text:
        return "published"
    if not run.config.packed:
        return "published sentences, each an example"
    return (
        f"published sentences; the run's examples are pieces of "
        f"{run.config.length} tokens, whose number, and so that of the steps, "
        "is not known before the tokens are made"
    )


def schedules(
    run: Run, optimizer: keras.optimizers.Optimizer
) -> list[dict[str, float]]:
    """Returns the values of what changes, at some updates."""
    total = run.steps.total
    at = {0, 1, 10, 100, total // 4, total // 2, 3 * total // 4, total - 1}
    warmup = run.settings[run.config.optimizer].get("damping_warmup")
    at |= {int(warmup)} if warmup else set()
    rows = []
    for t in sorted(t for t in at if t < total):
        micro_steps = optimizer.gradient_accumulation_steps or 1
        optimizer._iterations.assign(t * micro_steps)
        values = _values(optimizer, tf.constant(t, tf.int64))
        rows.append({"step": t, "epoch": run.steps.epoch(t), **values})
    return rows


def _values(optimizer, t):
    """Returns the hyperparameters of an optimizer at the update t."""
    found = {"learning_rate": optimizer.learning_rate}
    if isinstance(optimizer, tfkfac.KFAC):
        for name in optimizer.hyperparameters:
            found[name] = optimizer.at_update(name, tf.float64)
        for name, period in optimizer.periods.items():
            value = period.number
            found[name] = period._schedule(t) if value is None else value
    return {name: float(value) for name, value in found.items()}


def plan_of(
    run: Run, model: keras.Model, optimizer: keras.optimizers.Optimizer
) -> tfkfac.planning.Plan | dict[str, int]:
    """Returns what K-FAC takes, or the bytes of another optimizer's state.

    Schedules of periods are taken as 1, and what adapts as it is at last.
    """
    if not isinstance(optimizer, tfkfac.KFAC):
        optimizer.build(model.trainable_variables)
        sizes = (
            v.value.dtype.size * v.value.shape.num_elements()
            for v in optimizer.variables
        )
        return {"optimizer_bytes": sum(sizes)}
    config = run.config
    settings = run.settings[config.optimizer]
    inverter = settings.get("inverter", "cholesky")
    dtype = "int32" if run.trainer.text else "float32"
    periods: dict[str, Any] = {
        name: p.most or 1 for name, p in optimizer.periods.items()
    }
    return tfkfac.plan(
        model,
        batch_size=steps_of(run)["batch_of_a_rank"],
        ranks=number_of_ranks(config),
        strategy=optimizer.strategy,
        fisher=optimizer.fisher,
        inverter="eigen" if inverter == "eigen" else "cholesky",
        norm_curvature=settings.get("norm_curvature", "diagonal"),
        fallback=settings.get("fallback", "adam"),
        tied=optimizer.block_options["tied"],
        max_factor_size=optimizer.max_factor_size,
        communication_dtype=optimizer.communication_dtype,
        **periods,
        inputs=tf.TensorSpec([None, *train.input_shape(run)], dtype),
    )


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints a table, a column for each row, in rounded numbers."""
    width = max(len(key) for key in rows[0])
    for key in rows[0]:
        cells = [_rounded(row[key]).rjust(12) for row in rows]
        print(key.ljust(width), *cells)


def _rounded(value) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
