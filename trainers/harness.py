"""A run of a trainer: data, model, optimizer, callbacks, fit, evaluation."""

import math
import pathlib
import time

import keras
import numpy as np
import tensorflow as tf

import tfkfac
from tfkfac import communicator
from trainers import optimizers, output, plot
from trainers.command_line import Run
from trainers.models import MODELS


def main(run: Run) -> dict:
    """Trains, compares and writes the files; returns the summary."""
    ranks = tfkfac.init()
    args, directory = run.args, run.model_dir
    result, losses, history = train(run, args.optimizer, directory / output.LOG)
    summary = {
        "dataset": args.dataset,
        "model": args.model,
        "batch_size": args.batch_size,
        "epochs": args.epochs,
        "seed": args.seed,
        **result,
        "compare": [],
    }
    if ranks.rank == 0:
        output.write_json(directory / output.SUMMARY, summary)
    losses, histories = {args.optimizer: losses}, {args.optimizer: history}
    for name in args.compare:
        log = directory / f"log_{name}.csv"
        result, losses[name], histories[name] = train(run, name, log)
        summary["compare"].append(result)
    if ranks.rank > 0:
        return summary
    output.write_json(directory / output.SUMMARY, summary)
    output.write_losses(directory / "loss.csv", losses)
    if args.compare:
        title = f"{args.model} on {args.dataset}, batches of {args.batch_size}"
        with output.whole(directory / "loss.png") as path:
            plot.loss(path, title, losses, histories)
    print(f"Written to {directory}/")
    return summary


def train(
    run: Run, name: str, log: pathlib.Path
) -> tuple[dict, list[float], list[float]]:
    """Trains a new model with the optimizer `name`.

    Returns:
        The result for the summary, the training loss of each step, and the
        test accuracy after each epoch.
    """
    args = run.args
    model = build(run, name)
    start = time.perf_counter()
    history, losses = fit(run, name, model, log)
    seconds = time.perf_counter() - start
    test = run.data.test(args.batch_size)
    test_loss, test_accuracy = model.evaluate(test, verbose=0)
    ranks = communicator.current()
    if name == args.optimizer == "kfac":
        model.optimizer.gather_curvature()
    if name == args.optimizer and ranks.rank == 0:
        with output.whole(log.parent / "model.keras") as path:
            model.save(path)
    if ranks.rank == 0:
        print(
            f"{name}: test accuracy {test_accuracy:.4f}, "
            f"test loss {test_loss:.4f} after {len(losses)} steps in "
            f"{seconds:.1f} s on {ranks.size} rank{'s' * (ranks.size > 1)}"
        )
    result = {
        "optimizer": name,
        "settings": run.settings[name],
        "parameters": model.count_params(),
        "steps": len(losses),
        "train_loss": history["loss"][-1],
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "seconds": seconds,
    }
    return result, losses, history["val_accuracy"]


def build(run: Run, name: str) -> keras.Model:
    """Returns the compiled model; its weights are a function of --seed."""
    args, data = run.args, run.data
    keras.utils.set_random_seed(args.seed)
    model = MODELS[args.model](data.image_shape, data.classes)
    model.compile(
        optimizer=optimizers.make(name, model, args.seed, run.settings[name]),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def fit(
    run: Run, name: str, model: keras.Model, log: pathlib.Path
) -> tuple[dict, list[float]]:
    """Returns Keras' history and the training loss of each step."""
    args, data = run.args, run.data
    ranks = communicator.current()
    step_losses = StepLosses()
    callbacks = [tfkfac.callbacks.Distributed(), step_losses, StopOnNaN()]
    if ranks.rank == 0:
        callbacks.append(keras.callbacks.CSVLogger(log))
    if args.tensorboard and ranks.rank == 0:
        folder = log.parent / "tensorboard" / name
        callbacks.append(keras.callbacks.TensorBoard(folder))
    try:
        history = model.fit(
            data.train(args.batch_size, args.seed, ranks.rank, ranks.size),
            epochs=args.epochs,
            validation_data=data.test(args.batch_size),
            shuffle=False,  # The data is shuffled; this silences a warning.
            callbacks=callbacks,
            verbose=args.verbose,
        ).history
        diverged = not math.isfinite(history["loss"][-1])
    except tf.errors.InvalidArgumentError as error:
        # K-FAC gives up after some gradients in a row that are not finite.
        diverged = "max_skipped_steps" in str(error)
        if not diverged:
            raise
    if diverged:
        mend = ", raise --damping or lower --kl_clip" * (name == "kfac")
        raise SystemExit(
            f"{name} diverged in step {len(step_losses.values)} with "
            f"{run.settings[name]}: lower --learning_rate{mend}"
        )
    every = ranks.gather_objects(step_losses.values)
    return history, np.mean(every, axis=0).tolist()


class StopOnNaN(keras.callbacks.Callback):
    """Ends a run that has diverged, on all ranks at once.

    On one process after the batch; on several at the end of the epoch, when
    their losses have been averaged.
    """

    def on_train_batch_end(self, batch, logs=None):
        if communicator.current().size == 1:
            self._check(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._check(logs)

    def _check(self, logs):
        if not math.isfinite(logs["loss"]):
            self.model.stop_training = True


class StepLosses(keras.callbacks.Callback):
    """Collects the loss of each training step.

    Keras logs the mean over the epoch so far, weighted by the batches, which
    are of one size here; the sum's growth is the last batch's loss.
    """

    def __init__(self):
        super().__init__()
        self.values = []
        self._sum = 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self._sum = 0.0

    def on_train_batch_end(self, batch, logs=None):
        total = float(logs["loss"]) * (batch + 1)
        self.values.append(total - self._sum)
        self._sum = total
