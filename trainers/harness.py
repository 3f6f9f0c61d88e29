"""A run of a trainer: data, model, optimizer, callbacks, fit, evaluation."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfkfac
from tfkfac.distributed import communicator, sync
from tfkfac.distributed.loss_scale import unwrapped
from tfkfac.distributed.roll_call import RanksError
from trainers import agreement, layers, models, optimizers, output, run_files
from trainers.command_line import Run
from trainers.data import images
from trainers.training import Training


def main(run: Run) -> dict:
    """Trains, compares and writes the files; returns the summary.

    Raises:
        SystemExit: It cannot be trained, or did not end as asked; the sentence
            says why. Where it is about all ranks, all raise it.
    """
    ranks = tfkfac.init()
    size = {"the number of training examples": run.steps.train_size}
    agreement.require(size, ranks, "data")
    configure(run)
    check_optimizers(run)
    with claimed(run, ranks):
        return _trained(run, ranks)


@contextlib.contextmanager
def claimed(run: Run, ranks) -> Iterator[None]:
    """Within it --model_dir is this job's; all ranks exit where it cannot be.

    What `command_line.check` found there may have changed since.

    Args:
        run: The run.
        ranks: A `tfkfac.distributed.communicator.Communicator`.
    """
    args, directory = run.args, run.model_dir
    with contextlib.ExitStack() as stack:
        refusal = None
        try:
            if ranks.rank == 0:
                stack.enter_context(output.locked(directory))
                if args.resume:
                    output.resumed(directory, run.configuration())
                else:
                    output.refuse_another(directory, args.overwrite)
        except SystemExit as error:
            refusal = error.code
        refusal = ranks.broadcast_object(refusal)
        if refusal is not None:
            raise SystemExit(refusal)
        yield


def _trained(run, ranks):
    """Returns the summary of a run that has its directory."""
    args, directory = run.args, run.model_dir
    if ranks.rank == 0 and not args.resume:
        output.clear(directory)
        output.write_configuration(directory, run.configuration(), args.compare)
    result, losses, log = train(run, args.optimizer, directory)
    summary = {
        "dataset": args.dataset,
        "model": args.model,
        "batch_size": args.batch_size,
        "epochs": run.steps.epochs,
        "seed": args.seed,
        "ranks": ranks.size,
        **result,
        "compare": [],
    }
    if ranks.rank == 0:
        output.write_json(directory / run_files.SUMMARY, summary)
    losses, logs = {args.optimizer: losses}, {args.optimizer: log}
    for name in args.compare:
        folder = directory / run_files.folder_of(name)
        result, losses[name], logs[name] = train(run, name, folder)
        summary["compare"].append(result)
    if ranks.rank == 0:
        output.write_json(directory / run_files.SUMMARY, summary)
        _draw(run, losses, logs)
        print(f"Written to {directory}/")
    return summary


def configure(run: Run) -> None:
    """Sets what holds for the whole process."""
    policy = run.args.mixed_precision
    keras.config.set_dtype_policy(
        f"mixed_{policy}" if policy else keras.config.floatx()
    )
    if run.args.deterministic:
        tf.config.experimental.enable_op_determinism()


def check_optimizers(run: Run) -> None:
    """Exits where an optimizer refuses its settings or schedules."""
    for name, settings in run.settings.items():
        try:
            optimizers.make(name, None, run.args, settings, run.steps)
        except ValueError as error:
            raise SystemExit(f"--optimizer={name}: {error}") from error


def _draw(run, losses, logs):
    """Draws the comparison of the optimizers."""
    if not run.args.compare:
        return
    from trainers import plot

    output.write_losses(run.model_dir / "loss.csv", losses)
    title = (
        f"{run.args.model} on {run.args.dataset}, batches of "
        f"{run.args.batch_size}"
    )
    with output.whole(run.model_dir / "loss.png") as path:
        plot.comparison(path, title, losses, logs)


def train(
    run: Run, name: str, directory: pathlib.Path
) -> tuple[dict[str, Any], list[float], list[dict[str, float]]]:
    """Trains a new model with the optimizer `name`, or goes on with one.

    Returns:
        The result for the summary, the training loss of each step where there
        is a comparison, and the records of the log.
    """
    training = Training(run, name, build(run, name), directory)
    training.restore()
    try:
        with training.interruption:
            for part, end in training.parts():
                training.fit(part, end)
                training.evaluate()
                if training.target_reached():
                    break
        result = training.finish()
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        if sentence := run.data.explain(error):
            raise SystemExit(sentence) from error
        raise
    except RanksError as error:
        raise SystemExit(str(error)) from error
    except tf.errors.UnknownError as error:
        if "Horovod" not in str(error):
            raise
        meaning = communicator.current().explained(error, "in a collective")
        raise SystemExit(str(meaning)) from error
    return result, training.step_losses(), training.records


def build(run: Run, name: str) -> keras.Model:
    """Returns the compiled model; its weights are a function of --seed."""
    args, ranks = run.args, communicator.current()
    settings = run.settings[name]
    keras.utils.set_random_seed(args.seed)
    model = make_model(run)
    for state in sync.seeds(model):  # As of dropout: by the rank.
        state.assign(state.numpy() + np.array([ranks.rank, 0], "uint32"))
    if args.weight_decay_mode == "l2" and settings.get("weight_decay"):
        layers.regularize(model, settings["weight_decay"])
    optimizer = optimizers.make(name, model, args, settings, run.steps)
    if args.weight_rescaling:
        layers.rescale(model, unwrapped(optimizer))
    model.compile(
        optimizer=optimizer,
        loss=make_loss(run),
        metrics=["accuracy"],
        steps_per_execution=args.steps_per_execution,
        jit_compile="auto" if ranks.size == 1 else False,
    )
    # Keras has `fit` end with the averaged weights; here it ends every epoch.
    model.optimizer.finalize_variable_values = lambda variables: None
    return model


def make_model(run: Run) -> keras.Model:
    """Returns the model that --model names, for the data set."""
    args = run.args
    make = models.maker(args.model)
    if run.trainer.text:
        return make(args.vocabulary, mask_padding=not args.packed)
    known = images.CATALOG[args.dataset]
    return make(known.shape, known.classes)


def make_loss(run: Run) -> keras.losses.Loss:
    """Returns the cross-entropy of integers, or of labels in parts."""
    args = run.args
    if not run.trainer.text and (args.label_smoothing or args.mixup):
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=args.label_smoothing
        )
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
