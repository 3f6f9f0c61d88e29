"""An arm at a batch size: one trace, run with any settings."""

import math
import time

import keras
import numpy as np
import tensorflow as tf

import tfkfac
from tfkfac.distributed import communicator
from tfkfac.distributed.loss_scale import unwrapped
from tools.sweep.trials import (
    DIVERGED,
    METRICS,
    MISSED,
    REACHED,
    TUNING_SEED,
    Study,
    Task,
)
from trainers import evaluation, harness, schemes

POINTS = 50  # Of a trial's curve.
EXPLODED = 10  # Times the loss before training: what has diverged.


class Adjustable:
    """A hyperparameter of Keras' optimizers that a trace reads anew."""

    def __init__(self, value: float):
        self.variable = tf.Variable(value, trainable=False, dtype="float32")

    def __tf_tensor__(self, dtype=None, name=None):
        return tf.cast(self.variable.value(), dtype or tf.float32)

    def __rsub__(self, other):
        return other - self.variable.value()


class ScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of the trainers for the rate 1, times the rate."""

    def __init__(self, rate: Adjustable, schedule):
        self.rate, self.schedule = rate, schedule

    def __call__(self, step):
        rate = self.rate.variable.value()
        return rate * tf.cast(self.schedule(step), rate.dtype)


class Cell:
    """A model and its optimizer.

    K-FAC's sampled targets are of `TUNING_SEED` in all trials; the weights and
    the batches are of the trial's seed.

    Args:
        study: The study.
        label: Of its arms.
        batch_size: Of its batch sizes.
    """

    def __init__(self, study: Study, label: str, batch_size: int):
        self.study, self.run = study, study.run(label, batch_size)
        harness.configure(self.run)
        self._settings = self.run.settings[self.run.args.optimizer]
        if "kl_clip" in study.space(label):
            self._settings["kl_clip"] = 1.0  # So that there is a variable.
        seeds = {TUNING_SEED, *study.seeds}
        self._starts = {seed: self._start(seed) for seed in seeds}
        self.model = self._build(TUNING_SEED)
        self.optimizer = unwrapped(self.model.optimizer)
        self._numbers = self._adjustable(study.space(label))
        self.optimizer.build(self.model.trainable_variables)
        evaluation.build_metrics(self.model)
        self._state = self._variables()
        self._state_start = [v.numpy() for v in self._state]
        self._evaluation = evaluation.Evaluation(
            self.model, communicator.current()
        )
        self._validation = self._validation_batches()

        @tf.function(reduce_retracing=True)
        def step(batch):
            return self.model.train_step(batch)

        self._step = step

    def _build(self, seed):
        self.run.args.seed = seed
        return harness.build(self.run, self.run.args.optimizer)

    def _start(self, seed):
        """Returns the model's variables as they are initialized."""
        return [v.numpy() for v in self._build(seed).variables]

    def _adjustable(self, names) -> dict:
        """Returns what has `assign` for each hyperparameter.

        A number that the trace would hold gives way to a variable.
        """
        optimizer, found = self.optimizer, {}
        for name in names:
            attribute = "ema_momentum" if name == "ema" else name
            if name == "learning_rate":
                found[name] = self._rate()
            elif isinstance(optimizer, tfkfac.KFAC):
                found[name] = optimizer.hyperparameters[name]
            else:
                number = Adjustable(getattr(optimizer, attribute))
                setattr(optimizer, attribute, number)
                found[name] = number.variable
        return found

    def _rate(self):
        """Returns the variable of the learning rate, the first one."""
        args, steps = self.run.args, self.run.steps
        schedule = schemes.learning_rate(args, 1.0, steps)
        if not callable(schedule):
            return self.optimizer._learning_rate
        rate = Adjustable(1.0)
        self.optimizer.learning_rate = ScaledSchedule(rate, schedule)
        return rate.variable

    def _variables(self):
        """Returns what a trial changes, but for the model's variables."""
        found = [*self.optimizer.variables, *self.model.optimizer.variables]
        if isinstance(self.optimizer, tfkfac.KFAC):
            found += self.optimizer.curvature.variables
        return list({id(v): v for v in found}.values())

    def _validation_batches(self):
        """Returns the validation split, decoded once."""
        split = self.run.data.eval_splits[0]
        size = min(self.run.args.batch_size, 1024)
        batches = self.run.data.evaluation(split, size)
        return list(batches)

    def _reset(self, task: Task) -> None:
        """Sets everything to the start of a trial."""
        values = self._starts[task.seed]
        for variable, value in zip(self.model.variables, values):
            variable.assign(value)
        for variable, value in zip(self._state, self._state_start):
            variable.assign(value)
        for name, value in task.settings.items():
            self._numbers[name].assign(value)
        factor = self._settings.get("norm_damping_factor")
        if factor is not None and "damping" in task.settings:
            value = factor * task.settings["damping"]
            self.optimizer.hyperparameters["norm_damping"].assign(value)
        self.model.reset_metrics()

    def train(self, task: Task) -> dict:
        """Runs a trial.

        Returns:
            Its record: "index", "settings", "seed"; "status"; "steps" to the
            target, None if it was not reached; "curve", the metrics at
            "step"; "seconds".
        """
        begin = time.perf_counter()
        self._reset(task)
        curve = {name: [] for name in ("step", *METRICS)}
        try:
            status, reached = self._follow(task, curve)
        except tf.errors.InvalidArgumentError as error:
            if "max_skipped_steps" not in str(error):
                raise
            status, reached = DIVERGED, None
        return {
            "index": task.index,
            "settings": task.settings,
            "seed": task.seed,
            "status": status,
            "steps": reached,
            "curve": thinned(curve) if self.study.stop else curve,
            "seconds": round(time.perf_counter() - begin, 2),
        }

    def _follow(self, task, curve):
        """Trains and fills the curve; returns the status and the steps."""
        size, total = self.run.args.batch_size, self.run.steps.total
        period = max(1, round(self.study.evaluation_examples / size))
        batches = iter(self.run.data.train(size, task.seed))
        first = self._evaluation(self._validation)["loss"]
        last, reached = 0, None
        for end in [*range(period, total, period), total]:
            for _ in range(end - last):
                logs = self._step(next(batches))
            record, last = self._record(logs), end
            loss = max(record["loss"], record["val_loss"])
            if not loss <= EXPLODED * first:  # Or not a number.
                return DIVERGED, None
            for name, value in {"step": end, **record}.items():
                curve[name].append(value)
            if reached is None and self.study.better(record[self.study.metric]):
                reached = end
                if self.study.stop:
                    break
        if reached is None and record["val_loss"] >= first:
            return DIVERGED, None
        return (REACHED if reached else MISSED), reached

    def _record(self, logs):
        """Returns the metrics since the last record, and of validation."""
        with evaluation.averaged_weights(self.model):
            found = self._evaluation(self._validation)
        values = [logs["loss"], logs["accuracy"], *found.values()]
        self.model.reset_metrics()
        return {
            name: float(f"{float(value):.5g}")
            for name, value in zip(METRICS, values)
        }


def thinned(curve: dict[str, list]) -> dict[str, list]:
    """Returns about `POINTS` points of a curve, the last among them."""
    count = len(curve["step"])
    if not count:
        return {}
    apart = math.ceil(count / POINTS)
    kept = sorted({*range(0, count, apart), count - 1})
    return {name: np.take(v, kept).tolist() for name, v in curve.items()}
