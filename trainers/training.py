"""One model in training: what `fit` needs, and what is left of it."""

import math
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfkfac
from tfkfac.callbacks.distributed import average_statistics
from tfkfac.distributed import communicator
from tfkfac.distributed.loss_scale import unwrapped
from trainers import (
    callbacks,
    checkpoints,
    evaluation,
    files,
    report,
    run_directory,
)
from trainers.command_line import Run

INTERRUPTED = 130  # The exit status, as of a shell's Ctrl-C.


class Training:
    """A model, and how far its training is.

    All ranks call the same methods.

    Args:
        run: The run.
        name: Of the optimizer.
        model: The compiled model.
        directory: Where rank 0 writes.

    Attributes:
        step: The updates made.
        seconds: Those spent in `fit`, the first step's tracing among them.
        log: What each evaluation has found.
        interruption: The callback that ends it on Ctrl-C.
    """

    def __init__(
        self, run: Run, name: str, model: keras.Model, directory: pathlib.Path
    ):
        self.run, self.name, self.model = run, name, model
        self.directory = directory
        self.step, self.seconds = 0, 0.0
        self._ranks = communicator.current()
        self.log = report.Log(run, name, directory, self._ranks.rank)
        self._main = name == run.config.optimizer
        self._micro_steps = run.config.gradient_accumulation_steps
        self.interruption = callbacks.Interruption(
            self._ranks, self._save_within, self._micro_steps
        )
        self._losses = callbacks.StepLosses() if run.config.compare else None
        self._callbacks = [
            callbacks.StopOnNaN(self._ranks),
            self.interruption,
        ]
        kfac = isinstance(unwrapped(model.optimizer), tfkfac.KFAC)
        if run.config.health and kfac:
            self._callbacks.append(tfkfac.callbacks.Health(directory))
        if self._losses is not None:
            self._callbacks.append(self._losses)
        self._distributed = tfkfac.callbacks.Distributed()
        self._own: list | None = None  # What each rank had, to be restored.
        self._stream: Any = None
        self._evaluation = evaluation.Evaluation(
            model, self._ranks, lambda: self.interruption.requested
        )
        evaluation.build_metrics(model)

    def restore(self) -> None:
        """Goes on from the last checkpoint, where there is one to resume."""
        config, path = self.run.config, None
        if self._ranks.rank == 0:
            run_directory.make_folder(self.directory)
        if config.resume:
            path = checkpoints.latest(self.directory)
        if path is not None:
            state, self._own = checkpoints.restore(
                path, self.model, self._ranks, self.run.configuration()
            )
            self.step, self.seconds = state["step"], state["seconds"]
            self.log.restore(state["records"])
        self._stream = iter(
            self.run.data.train(
                config.batch_size // self._micro_steps,
                config.seed,
                self._ranks.rank,
                self._ranks.size,
                first_step=self.step * self._micro_steps,
            )
        )

    def parts(self) -> Iterator[tuple[int, int]]:
        """Yields number and last update of the parts that are left."""
        config = self.run.config
        ends = self.run.steps.ends(config.evaluation_period, config.steps)
        self._count = len(ends)
        done = self.log.records[-1]["step"] if self.log.records else 0
        left = [end for end in ends if end > done and end >= self.step]
        if self.step > done:  # A part was begun: what is left has to end it.
            left = left or [self.step]
        elif self.target_reached():
            left = []
        yield from enumerate(left, start=self._count - len(left))

    def fit(self, part: int, end: int) -> None:
        """Trains up to the update `end`.

        Raises:
            SystemExit: Training has diverged, or was interrupted.
        """
        config, ranks = self.run.config, self._ranks
        self._end, count = end, (end - self.step) * self._micro_steps
        if self._cut(end) and config.keep_checkpoints:
            # Saved as what it is, a part that is begun.
            self.interruption.save_at = count
        own, self._own = self._own, None
        if not count:  # Interrupted after the last step of the part.
            checkpoints.assign_own(self.model, own or [])
            average_statistics(self.model)  # Which ends it.
            return
        # Of the one stream of batches, which goes on from part to part.
        batches = tf.data.Dataset.range(count).map(
            lambda _: self._stream.get_next()
        )
        of_part = callbacks.OfRun(self._count, own)
        self._begin = time.monotonic()
        try:
            self.model.fit(
                batches,
                initial_epoch=part,
                epochs=part + 1,
                shuffle=False,  # The data is shuffled; this silences a warning.
                callbacks=[self._distributed, of_part, *self._callbacks],
                verbose=int(config.verbose == 1 and ranks.rank == 0),
            )
        except tf.errors.InvalidArgumentError as error:
            # K-FAC gives up after some gradients in a row that are not finite.
            if "max_skipped_steps" not in str(error):
                raise
            self._refuse_divergence()
        if self.interruption.stopped:
            self._leave()
        self.seconds += time.monotonic() - self._begin
        self.step = end
        if not math.isfinite(self._train_metrics()["loss"]):
            self._refuse_divergence()

    def evaluate(self) -> None:
        """Evaluates, logs, and saves a checkpoint.

        Raises:
            SystemExit: It was interrupted.
        """
        found = self._evaluate(self.run.data.eval_splits[0])
        if found is None:
            self._save(begun=True)
            self._leave()
        self.log.add(
            {
                "step": self.step,
                "epoch": round(self.run.steps.epoch(self.step), 6),
                **self._train_metrics(),
                **{f"val_{key}": value for key, value in found.items()},
                "learning_rate": float(self.model.optimizer.learning_rate),
                "seconds": round(self.seconds, 3),
            }
        )
        save = self._main and self.run.config.keep_checkpoints
        if save and not self._cut(self.step):
            self._save()

    def target_reached(self) -> bool:
        """Returns whether the last record is as good as --target_value."""
        metric, value = (
            self.run.config.target_metric,
            self.run.config.target_value,
        )
        if metric is None or not self.log.records:
            return False
        found = self.log.records[-1][metric]
        return found <= value if metric.endswith("loss") else found >= value

    def finish(self) -> dict[str, Any]:
        """Evaluates all splits, saves the model; returns the result.

        With --ema the model has the averaged weights from here on.
        """
        last = self.log.records[-1]
        self.interruption.requested = False  # It is as good as done.
        optimizer = unwrapped(self.model.optimizer)
        if optimizer.use_ema:
            optimizer._overwrite_model_variables_with_average_value(
                self.model.trainable_variables
            )
        first, *others = self.run.data.eval_splits
        found = {first: {k: last[f"val_{k}"] for k in ("loss", "accuracy")}}
        for split in others:
            found[split] = self._evaluate(split, averaged=False)
        if self._main:
            checkpoints.gather(self.model)
        result = report.result(
            self.run, self.name, self.model, last, found, self.target_reached()
        )
        if self._ranks.rank == 0:
            if self._main:
                with files.whole(self.directory / "model.keras") as path:
                    self.model.save(path)
            report.write_curves(
                self.run, self.directory, self.log.records, self.name
            )
            report.print_result(result, list(found)[-1], self._ranks.size)
        return result

    def step_losses(self) -> list[float]:
        """Returns the training loss of each step, over all ranks."""
        if self._losses is None:
            return []
        every = self._ranks.gather_objects(self._losses.values)
        return np.mean(every, axis=0).tolist()

    def _evaluate(self, split, averaged=True):
        config, ranks = self.run.config, self._ranks
        batches = self.run.data.evaluation(
            split,
            config.batch_size // self._micro_steps,
            ranks.rank,
            ranks.size,
        )
        if not averaged:
            return self._evaluation(batches)
        with evaluation.averaged_weights(self.model):
            return self._evaluation(batches)

    def _train_metrics(self):
        return evaluation.of_training(self.model, self._ranks)

    def _save_within(self, micro_steps):
        """Saves after so many micro-steps of this call of `fit`."""
        start, seconds = self.step, self.seconds
        # The last of several steps at once may be less.
        made = self.step + micro_steps // self._micro_steps
        self.step = min(made, self._end)
        self.seconds += time.monotonic() - self._begin
        self._save(begun=True)
        if not self.interruption.stopped:
            self.step, self.seconds = start, seconds

    def _cut(self, end):
        """Returns whether --steps ends the run there, within a part."""
        every = self.run.steps.ends(self.run.config.evaluation_period, None)
        return self._main and end not in every

    def _save(self, begun=False):
        """Saves a checkpoint.

        Args:
            begun: Whether the part goes on, and so do its metrics.
        """
        state = {
            "configuration": files.plain(self.run.configuration()),
            "begun": begun,
            "step": self.step,
            "seconds": self.seconds,
            "records": self.log.records,
        }
        keep = self.run.config.keep_checkpoints
        self._saved = checkpoints.save(
            self.directory, self.model, self._ranks, state, keep
        )

    def _leave(self):
        if self._ranks.rank == 0:
            print(
                f"Interrupted after {self.step} updates: {self._saved} is "
                "whole; go on with --resume",
                flush=True,
            )
        sys.exit(INTERRUPTED)

    def _refuse_divergence(self):
        kfac = self.name.startswith("kfac")
        mend = ", raise --damping or lower --kl_clip" * kfac
        steps = int(unwrapped(self.model.optimizer).iterations)
        raise SystemExit(
            f"{self.name} diverged within {steps} steps with "
            f" {self.run.settings[self.name]}: lower --learning_rate{mend}"
        )
