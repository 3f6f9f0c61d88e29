"""A run from top to bottom: data, model, optimizer, loop, evaluation, files.

A beginning for programs of one's own: `main` is what `python -m trainers.cifar`
does once its flags are found good, `build` makes the model and its optimizer,
and `train` takes them through the parts of the run, each a call of
`Training.fit`.
"""

import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfkfac
from tfkfac.distributed import communicator, sync
from tfkfac.distributed.loss_scale import unwrapped
from tfkfac.distributed.roll_call import RanksError
from trainers import (
    files,
    launch,
    layers,
    models,
    optimizers,
    report,
    run_directory,
)
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
    launch.require_same(size, ranks, "data")
    configure(run)
    check_optimizers(run)
    with run_directory.claimed(run, ranks):
        if ranks.rank == 0 and not run.config.resume:
            run_directory.begin(run)
        return _trained(run, ranks)


def _trained(run, ranks):
    """Returns the summary of a run that has its directory."""
    config, directory = run.config, run.model_dir
    summary = {
        "dataset": config.dataset,
        "model": config.model,
        "batch_size": config.batch_size,
        "epochs": run.steps.epochs,
        "seed": config.seed,
        "ranks": ranks.size,
    }
    losses, logs, results = {}, {}, []
    for name in (config.optimizer, *config.compare):
        folder = directory
        if results:
            folder = directory / run_directory.folder_of(name)
        result, losses[name], logs[name] = train(run, name, folder)
        results.append(result)
        if ranks.rank == 0:
            found = {**summary, **results[0], "compare": results[1:]}
            files.write_json(directory / run_directory.SUMMARY, found)
    if ranks.rank == 0:
        if config.compare:
            report.print_comparison(results, run.data.eval_splits[-1])
            picture = report.write_comparison(run, losses, logs)
            print(f"The curves: {picture}")
        print(f"Written to {directory}/")
    return {**summary, **results[0], "compare": results[1:]}


def configure(run: Run) -> None:
    """Sets what holds for the whole process."""
    policy = run.config.mixed_precision
    keras.config.set_dtype_policy(
        f"mixed_{policy}" if policy else keras.config.floatx()
    )
    if run.config.deterministic:
        tf.config.experimental.enable_op_determinism()


def check_optimizers(run: Run) -> None:
    """Exits where an optimizer refuses its settings or schedules."""
    for name, settings in run.settings.items():
        try:
            optimizers.make(name, None, run.config, settings, run.steps)
        except ValueError as error:
            raise SystemExit(f"--optimizer={name}: {error}") from error


def make_model(run: Run) -> keras.Model:
    """Returns the model that --model names, for the data set."""
    config, make = run.config, models.maker(run.config.model)
    if run.trainer.text:
        return make(config.vocabulary, mask_padding=not config.packed)
    known = images.CATALOG[config.dataset]
    return make(known.shape, known.classes)


def input_shape(run: Run) -> tuple[int, ...]:
    """Returns the shape of a model's image, or of its tokens."""
    if run.trainer.text:
        return (run.config.length,)
    return images.CATALOG[run.config.dataset].shape


def make_loss(run: Run) -> keras.losses.Loss:
    """Returns the cross-entropy of integers, or of labels in parts."""
    config = run.config
    if not run.trainer.text and (config.label_smoothing or config.mixup):
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=config.label_smoothing
        )
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build(run: Run, name: str) -> keras.Model:
    """Returns the compiled model; its weights are a function of --seed."""
    config, ranks = run.config, communicator.current()
    settings = run.settings[name]
    keras.utils.set_random_seed(config.seed)
    model = make_model(run)
    for state in sync.seeds(model):  # As of dropout: by the rank.
        state.assign(state.numpy() + np.array([ranks.rank, 0], "uint32"))
    if config.weight_decay_mode == "l2" and settings.get("weight_decay"):
        layers.regularize(model, settings["weight_decay"])
    optimizer = optimizers.make(name, model, config, settings, run.steps)
    if config.weight_rescaling:
        layers.rescale(model, unwrapped(optimizer))
    model.compile(
        optimizer=optimizer,
        loss=make_loss(run),
        metrics=["accuracy"],
        steps_per_execution=config.steps_per_execution,
        jit_compile="auto" if ranks.size == 1 else False,
    )
    # Keras has `fit` end with the averaged weights; here it ends every epoch.
    model.optimizer.finalize_variable_values = lambda variables: None
    return model


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
    return result, training.step_losses(), training.log.records
