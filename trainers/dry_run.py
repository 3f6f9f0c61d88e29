"""What a run would do, without training: --dry_run."""

import json
from typing import Any

import keras
import tensorflow as tf

import tfkfac
from tfkfac.distributed.loss_scale import unwrapped
from trainers import harness, launcher, optimizers, output
from trainers.command_line import Run, flags_of, input_shape
from trainers.refusals import number_of_ranks


def main(run: Run) -> None:
    """Prints configuration, model, steps, schedules and plan on rank 0."""
    if launcher.rank() > 0:
        return
    args = run.args
    harness.configure(run)
    model = harness.make_model(run)
    optimizer = unwrapped(  # Attached to no model, it takes no memory.
        optimizers.make(
            args.optimizer, None, args, run.settings[args.optimizer], run.steps
        )
    )
    values = schedules(run, optimizer)
    plan = plan_of(run, model, optimizer)
    if args.json:
        found = {
            "flags": flags_of(run.trainer, run.args),
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
        print(json.dumps(output.plain(found), indent=2, default=str))
        return
    for values_of in (flags_of(run.trainer, run.args), optimizer.get_config()):
        for name, value in values_of.items():
            print(f"{name}: {value}")
        print()
    model.summary()
    print_table([steps_of(run)])
    print_table(values)
    print(plan)


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
    ranks = number_of_ranks(run.args)
    micro_steps = run.args.gradient_accumulation_steps
    return {
        "training_examples": run.steps.train_size,
        "counted": _counted(run),
        "ranks": ranks,
        "batch_of_a_rank": run.args.batch_size // (ranks * micro_steps),
        "micro_steps": micro_steps,
        "steps_per_epoch": run.steps.per_epoch,
        "epochs": run.steps.epochs,
        "steps": run.steps.ends(None, run.args.steps)[-1],
    }


def _counted(run):
    """Returns where the number of training examples is from, and if it is not
    that of the run, what is not known."""
    if run.data:
        return "on disk"
    if not run.trainer.text:
        return "published"
    if not run.args.packed:
        return "published sentences, each an example"
    return (
        f"published sentences; the run's examples are pieces of "
        f"{run.args.length} tokens, whose number, and so that of the steps, is "
        "not known before the tokens are made"
    )


def schedules(
    run: Run, optimizer: keras.optimizers.Optimizer
) -> list[dict[str, float]]:
    """Returns the values of what changes, at some updates."""
    total = run.steps.total
    at = {0, 1, 10, 100, total // 4, total // 2, 3 * total // 4, total - 1}
    warmup = run.settings[run.args.optimizer].get("damping_warmup")
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
    args = run.args
    settings = run.settings[args.optimizer]
    inverter = settings.get("inverter", "cholesky")
    dtype = "int32" if run.trainer.text else "float32"
    return tfkfac.plan(
        model,
        batch_size=steps_of(run)["batch_of_a_rank"],
        ranks=number_of_ranks(args),
        strategy=optimizer.strategy,
        fisher=optimizer.fisher,
        inverter="eigen" if inverter == "eigen" else "cholesky",
        norm_curvature=settings.get("norm_curvature", "diagonal"),
        fallback=settings.get("fallback", "adam"),
        tied=optimizer.block_options["tied"],
        max_factor_size=optimizer.max_factor_size,
        communication_dtype=optimizer.communication_dtype,
        **{name: p.most or 1 for name, p in optimizer.periods.items()},
        inputs=tf.TensorSpec([None, *input_shape(run)], dtype),
    )


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints a table, a column for each row."""
    width = max(len(key) for key in rows[0])
    for key in rows[0]:
        cells = [
            f"{row[key]:.5g}" if isinstance(row[key], float) else str(row[key])
            for row in rows
        ]
        print(key.ljust(width), *(cell.rjust(12) for cell in cells))
