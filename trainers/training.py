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
    output,
    report,
    run_files,
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
        records: The log: "step", "epoch", the metrics, "learning_rate",
            "seconds", one for each evaluation.
        interruption: The callback that ends it on Ctrl-C.
    """

    def __init__(
        self, run: Run, name: str, model: keras.Model, directory: pathlib.Path
    ):
        self.run, self.name, self.model = run, name, model
        self.directory = directory
        self.step, self.seconds = 0, 0.0
        self.records: list[dict[str, float]] = []
        self._ranks = communicator.current()
        self._main = name == run.args.optimizer
        self._micro_steps = run.args.gradient_accumulation_steps
        self.interruption = callbacks.Interruption(
            self._ranks, self._save_within, self._micro_steps
        )
        self._losses = callbacks.StepLosses() if run.args.compare else None
        self._distributed = tfkfac.callbacks.Distributed()
        self._health = []
        if run.args.health and isinstance(
            unwrapped(model.optimizer), tfkfac.KFAC
        ):
            self._health = [tfkfac.callbacks.Health(directory)]
        self._own = None  # What each rank had for itself, to be restored.
        self._stream = None
        self._evaluation = evaluation.Evaluation(
            model, self._ranks, lambda: self.interruption.requested
        )
        self._writer = None
        if run.args.tensorboard and self._ranks.rank == 0:
            folder = run.model_dir / run_files.EVENTS / name
            self._writer = tf.summary.create_file_writer(str(folder))
        evaluation.build_metrics(model)

    def restore(self) -> None:
        """Goes on from the last checkpoint, where there is one to resume."""
        args, path = self.run.args, None
        if self._ranks.rank == 0:
            output.make_folder(self.directory)
        if args.resume:
            path = checkpoints.latest(self.directory)
        if path is not None:
            state, self._own = checkpoints.restore(
                path, self.model, self._ranks, self.run.configuration()
            )
            self.step, self.seconds = state["step"], state["seconds"]
            self.records = state["records"]
            if self._ranks.rank == 0:
                output.write_records(self.directory, self.records)
        self._stream = iter(
            self.run.data.train(
                args.batch_size // self._micro_steps,
                args.seed,
                self._ranks.rank,
                self._ranks.size,
                first_step=self.step * self._micro_steps,
            )
        )

    def parts(self) -> Iterator[tuple[int, int]]:
        """Yields number and last update of the parts that are left."""
        args = self.run.args
        ends = self.run.steps.ends(args.evaluation_period, args.steps)
        self._count = len(ends)
        done = self.records[-1]["step"] if self.records else 0
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
        args, ranks = self.run.args, self._ranks
        self._end, count = end, (end - self.step) * self._micro_steps
        if self._cut(end) and args.keep_checkpoints:
            # Saved as what it is, a part that is begun.
            self.interruption.save_at = count
        own, self._own = self._own, None
        if not count:  # Interrupted after the last step of the part.
            checkpoints.assign_own(self.model, own)
            average_statistics(self.model)  # Which ends it.
            return
        # Of the one stream of batches, which goes on from part to part.
        batches = tf.data.Dataset.range(count).map(
            lambda _: self._stream.get_next()
        )
        of_part = [
            self._distributed,
            callbacks.OfRun(self._count, own),
            callbacks.StopOnNaN(ranks),
            self.interruption,
            *self._health,
        ]
        if self._losses is not None:
            of_part.append(self._losses)
        self._begin = time.monotonic()
        try:
            self.model.fit(
                batches,
                initial_epoch=part,
                epochs=part + 1,
                shuffle=False,  # The data is shuffled; this silences a warning.
                callbacks=of_part,
                verbose=int(args.verbose == 1 and ranks.rank == 0),
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
        record = {
            "step": self.step,
            "epoch": round(self.run.steps.epoch(self.step), 6),
            **self._train_metrics(),
            **{f"val_{key}": value for key, value in found.items()},
            "learning_rate": float(self.model.optimizer.learning_rate),
            "seconds": round(self.seconds, 3),
        }
        self.records.append(record)
        if self._ranks.rank == 0:
            self._log(record)
        save = self._main and self.run.args.keep_checkpoints
        if save and not self._cut(self.step):
            self._save()

    def _log(self, record):
        output.write_records(self.directory, self.records)
        if self.run.args.verbose:
            shown = [f"{key} {value:.6g}" for key, value in record.items()]
            print(f"{self.name}: {', '.join(shown)}", flush=True)
        if self._writer is not None:
            with self._writer.as_default(step=self.step):
                for key, value in record.items():
                    tf.summary.scalar(key, value)
            self._writer.flush()

    def target_reached(self) -> bool:
        """Returns whether the last record is as good as --target_value."""
        metric, value = (
            self.run.args.target_metric,
            self.run.args.target_value,
        )
        if metric is None or not self.records:
            return False
        found = self.records[-1][metric]
        return found <= value if metric.endswith("loss") else found >= value

    def finish(self) -> dict[str, Any]:
        """Evaluates all splits, saves the model; returns the result.

        With --ema the model has the averaged weights from here on.
        """
        last = self.records[-1]
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
                with output.whole(self.directory / "model.keras") as path:
                    self.model.save(path)
            report.write_curves(self.run, self.directory, self.records, result)
            report.print_result(result, list(found)[-1], self._ranks.size)
        return result

    def step_losses(self) -> list[float]:
        """Returns the training loss of each step, over all ranks."""
        if self._losses is None:
            return []
        every = self._ranks.gather_objects(self._losses.values)
        return np.mean(every, axis=0).tolist()

    def _evaluate(self, split, averaged=True):
        args, ranks = self.run.args, self._ranks
        batches = self.run.data.evaluation(
            split, args.batch_size // self._micro_steps, ranks.rank, ranks.size
        )
        if not averaged:
            return self._evaluation(batches)
        with evaluation.averaged_weights(self.model):
            return self._evaluation(batches)

    def _train_metrics(self):
        """Returns those of the part: sums by counts, both over all ranks."""
        loss, compiled = self.model.metrics
        own = {
            metric.name: np.array([metric.total, metric.count], "float64")
            for metric in (loss, *compiled.metrics)
        }
        every = self._ranks.gather_objects(own)
        sums = {name: sum(found[name] for found in every) for name in own}
        return {name: float(total / n) for name, (total, n) in sums.items()}

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
        every = self.run.steps.ends(self.run.args.evaluation_period, None)
        return self._main and end not in every

    def _save(self, begun=False):
        """Saves a checkpoint.

        Args:
            begun: Whether the part goes on, and so do its metrics.
        """
        state = {
            "configuration": output.plain(self.run.configuration()),
            "begun": begun,
            "step": self.step,
            "seconds": self.seconds,
            "records": self.records,
        }
        keep = self.run.args.keep_checkpoints
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
