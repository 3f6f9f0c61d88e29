"""An arm at a batch size: one trace, run with any settings."""

import contextlib
import dataclasses
import itertools
import math
import time

import keras
import numpy as np
import tensorflow as tf

import tfkfac
from tfkfac.distributed import communicator
from tfkfac.distributed.loss_scale import unwrapped
from tools.sweep import space
from tools.sweep.trials import (
    DIVERGED,
    METRICS,
    MISSED,
    REACHED,
    TUNING_SEED,
    Study,
    Task,
)
from trainers import evaluation, optimizers, train

POINTS = 50  # Of a trial's curve.
EXPLODED = 10  # Times the training loss before training: what has diverged.


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


class LinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """alpha (1 - (1 - gamma) min(t / T, 1)), all of them variables.

    Zhang et al. 2019, F.3, where all three are tuned.

    Args:
        rate: alpha.
        to: gamma.
        end: The epoch at which it ends.
        per_epoch: The updates of an epoch, so that T = end * per_epoch.
    """

    def __init__(
        self,
        rate: Adjustable,
        to: Adjustable,
        end: Adjustable,
        per_epoch: float,
    ):
        self.rate, self.to, self.end = rate, to, end
        self.per_epoch = per_epoch

    def __call__(self, step):
        rate, to, end = (
            x.variable.value() for x in (self.rate, self.to, self.end)
        )
        part = tf.cast(step, rate.dtype) / (end * self.per_epoch)
        return rate * (1 - (1 - to) * tf.minimum(part, 1))


class Cell:
    """A model and its optimizer.

    Loss and accuracy are those of the evaluation, on the training split without
    augmentation as on the validation split, with the averaged weights where
    there are some (Zhang et al. 2019, 3.4: they are used at test time).

    K-FAC's sampled targets are of `TUNING_SEED` in all trials; the weights and
    the batches are of the trial's seed.

    Args:
        study: The study.
        label: Of its arms.
        batch_size: Of its batch sizes.
    """

    def __init__(self, study: Study, label: str, batch_size: int):
        self.study, self.run = study, study.run(label, batch_size)
        self._parts = study.parts(batch_size)
        train.configure(self.run)
        self._settings = self.run.settings[self.run.config.optimizer]
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
        self._validation = self._batches_of(self.run.data.eval_splits[0])
        self._training = self._batches_of("train")

        @tf.function(reduce_retracing=True)
        def step(batch):
            return self.model.train_step(batch)

        self._step = step

    def _build(self, seed):
        config = dataclasses.replace(self.run.config, seed=seed)
        run = dataclasses.replace(self.run, config=config)
        return train.build(run, config.optimizer)

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
                found |= self._rate(names)
            elif name in space.SCHEDULE:
                continue  # The rate has them.
            elif isinstance(optimizer, tfkfac.KFAC):
                found[name] = optimizer.hyperparameters[name]
            else:
                number = Adjustable(getattr(optimizer, attribute))
                setattr(optimizer, attribute, number)
                found[name] = number.variable
        return found

    def _rate(self, names) -> dict:
        """Returns the variables of the learning rate, the first one, and of
        what is tuned of its schedule."""
        config, steps = self.run.config, self.run.steps
        schedule = optimizers.learning_rate(config, 1.0, steps)
        if not callable(schedule):
            return {"learning_rate": self.optimizer._learning_rate}
        numbers = {"learning_rate": Adjustable(1.0)}
        if space.SCHEDULE.keys() & names:
            end = steps.epochs if config.decay_end is None else config.decay_end
            numbers["decay_to"] = Adjustable(config.decay_to)
            numbers["decay_end"] = Adjustable(end)
            made = LinearDecay(*numbers.values(), steps.per_epoch)
        else:
            made = ScaledSchedule(*numbers.values(), schedule)
        is_kfac = isinstance(self.optimizer, tfkfac.KFAC)
        if self._parts > 1 and not is_kfac:
            made = optimizers.OfUpdates(made, self._parts)
        self.optimizer.learning_rate = made
        return {name: number.variable for name, number in numbers.items()}

    def _variables(self):
        """Returns what a trial changes, but for the model's variables."""
        found = [*self.optimizer.variables, *self.model.optimizer.variables]
        if isinstance(self.optimizer, tfkfac.KFAC):
            found += self.optimizer.curvature.variables
        return list({id(v): v for v in found}.values())

    def _batches_of(self, split):
        """Returns the batches of a split, decoded once."""
        size = min(self.run.config.batch_size // self._parts, 1024)
        batches = self.run.data.evaluation(split, size)
        count = math.ceil(self.study.split_examples / size)
        return list(itertools.islice(batches, count))

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
            target, None if it was not reached, and "also" those to the other
            targets; "curve", the metrics and the seconds of training at "step",
            from before the first step on; "seconds" of all of it.
        """
        begin = time.perf_counter()
        self._reset(task)
        curve = {name: [] for name in ("step", *METRICS, "seconds")}
        reached = {}
        try:
            status = self._follow(task, curve, reached)
        except tf.errors.InvalidArgumentError as error:
            if "max_skipped_steps" not in str(error):
                raise
            status = DIVERGED
        failed = status == DIVERGED
        of_metrics = {m: reached.get(m) for m in self.study.also}
        return {
            "index": task.index,
            "settings": task.settings,
            "seed": task.seed,
            "status": status,
            "steps": None if failed else reached.get(self.study.metric),
            **({"also": of_metrics} if of_metrics else {}),
            "curve": thinned(curve) if self.study.stop else curve,
            "seconds": round(time.perf_counter() - begin, 2),
        }

    def _follow(self, task, curve, reached):
        """Trains; fills the curve and the steps to the targets.

        A trial diverges by its training loss (Zhang et al. 2019, footnote 4):
        where that is not finite or `EXPLODED`, and where at the end no target
        is reached and it is no less than before the first step.

        Returns:
            The status.
        """
        size, total = self.run.config.batch_size, self.study.total(self.run)
        period = max(1, round(self.study.evaluation_examples / size))
        batches = iter(self.run.data.train(size // self._parts, task.seed))
        first = record = self._record(curve, 0, 0.0)
        last, seconds = 0, 0.0
        for end in [*range(period, total, period), total]:
            begin = time.perf_counter()
            for _ in range((end - last) * self._parts):
                self._step(next(batches))
            seconds += time.perf_counter() - begin
            record, last = self._record(curve, end, seconds), end
            if not record["loss"] <= EXPLODED * first["loss"]:
                return DIVERGED  # Or it is not a number.
            for metric in self.study.reaches(record):
                reached.setdefault(metric, end)
            if self.study.stop and len(reached) == len(self.study.targets):
                break
        if self.study.metric in reached:
            return REACHED
        lower = record["loss"] < first["loss"]
        return MISSED if lower or reached else DIVERGED

    def _record(self, curve, step, seconds):
        """Returns the metrics, and adds them to the curve if all are finite."""
        averaged = evaluation.averaged_weights(self.model)
        # Before the first step there is no average.
        with averaged if step else contextlib.nullcontext():
            of_splits = [
                self._evaluation(batches)
                for batches in (self._training, self._validation)
            ]
        self.model.reset_metrics()
        values = [value for found in of_splits for value in found.values()]
        record = {
            name: float(f"{float(value):.5g}")
            for name, value in zip(METRICS, values)
        }
        if all(map(math.isfinite, record.values())):
            times = {"step": step, "seconds": round(seconds, 3)}
            for name, value in {**times, **record}.items():
                curve[name].append(value)
        return record


def thinned(curve: dict[str, list]) -> dict[str, list]:
    """Returns about `POINTS` points of a curve, the last among them."""
    count = len(curve["step"])
    if not count:
        return {}
    apart = math.ceil(count / POINTS)
    kept = sorted({*range(0, count, apart), count - 1})
    return {name: np.take(v, kept).tolist() for name, v in curve.items()}
