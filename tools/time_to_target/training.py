"""One run, in a process of its own.

    python -m tools.time_to_target.training '{"task": "digits_cnn", ...}'

It prints the run's record as the last line, JSON.
"""

import dataclasses
import json
import math
import pathlib
import resource
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from tools.time_to_target import optimizers, tasks


class Clock(keras.callbacks.Callback):
    """Takes the time of a run and ends it.

    An "epoch" of `fit` is `task.every` steps; its loss is their mean. The
    validation loss is taken between two of them, and its time left out.

    Args:
        task: The task.
        limit: Where the run is given up.
        stay: Whether to go on after the target over as many steps again.
        validation: (x, y), or None for no validation.

    Attributes:
        record: What a run is kept as.
    """

    def __init__(self, task, limit: int, stay: bool, validation):
        super().__init__()
        self._task, self._stay, self._validation = task, stay, validation
        self._end = limit
        self.record: dict = {
            "steps": None,
            "seconds": None,
            "first_step_seconds": None,
            "processor_seconds": None,
            "validation_steps": None,
            "worst_after": None,
            "curve": [],
        }

    def on_train_begin(self, logs=None):
        self._left_out = self._processor_left_out = 0.0

    def start(self) -> None:
        """Starts the clock, just before `fit` is called."""
        self._begin, self._processor = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, batch, logs=None):
        if self.record["first_step_seconds"] is None:
            self.record["first_step_seconds"] = self._seconds()

    def _seconds(self) -> float:
        return time.perf_counter() - self._begin - self._left_out

    def on_epoch_end(self, epoch, logs=None):
        step, loss = (epoch + 1) * self._task.every, float(logs["loss"])
        record, seconds = self.record, self._seconds()
        record["curve"].append([step, loss, round(seconds, 3)])
        if record["steps"] is not None:
            worst = loss if math.isfinite(loss) else math.inf
            record["worst_after"] = max(record["worst_after"] or 0.0, worst)
        elif self._task.target is not None and loss <= self._task.target:
            processor = time.process_time() - self._processor
            record["steps"], record["seconds"] = step, seconds
            record["processor_seconds"] = processor - self._processor_left_out
            if self._stay:
                self._end = 2 * step
        self._validate(step)
        if not math.isfinite(loss) or self._is_over(step):
            self.model.stop_training = True

    def _validate(self, step):
        target, record = self._task.validation_target, self.record
        if target is None or record["validation_steps"] is not None:
            return
        begin, processor = time.perf_counter(), time.process_time()
        found = self.model.evaluate(
            *self._validation, batch_size=500, verbose=0
        )
        if found <= target:
            record["validation_steps"] = step
        self._left_out += time.perf_counter() - begin
        self._processor_left_out += time.process_time() - processor

    def _is_over(self, step):
        record = self.record
        reached = record["steps"] is not None and (
            self._stay
            or self._task.validation_target is None
            or record["validation_steps"] is not None
        )
        return step >= self._end or (reached and not self._stay)


def batches(data: tasks.Data, size: int, seed: int) -> tf.data.Dataset:
    """Returns batches without end, each example once an epoch."""
    examples = tf.data.Dataset.from_tensor_slices((data.x, data.y))
    shuffled = examples.shuffle(len(data.x), seed=seed)
    return shuffled.repeat().batch(size, drop_remainder=True).prefetch(2)


def train(
    task: str,
    optimizer: str,
    arguments: dict,
    seed: int,
    after: int | None = None,
    limit: int | None = None,
    stay: bool = False,
) -> dict:
    """Returns the record of a run.

    Args:
        task: Of `tasks.TASKS`.
        optimizer: "kfac", or of `optimizers.PEERS`.
        arguments: Of the optimizer.
        seed: Of weights, batches and dropout.
        after: Where it ends, in steps, whatever the target; None for the
            target.
        limit: Where it is given up, in steps; None leaves it to the task.
        stay: Whether to go on after the target over as many steps again.
    """
    asked = tasks.TASKS[task]
    if after is not None:
        asked = dataclasses.replace(
            asked, steps=after, target=None, validation_target=None
        )
    keras.utils.set_random_seed(seed)
    data = asked.data()
    model = asked.model()
    made = optimizers.make(optimizer, arguments, asked.steps, model)
    model.compile(made, asked.loss)
    end = limit or asked.steps
    validation = data.x_validation, data.y_validation
    clock = Clock(asked, end, stay, validation)
    given = batches(data, asked.batch_size, seed)
    _forget_peak()  # It may be that of reading the data.
    before = _peak()
    clock.start()
    failure = None
    try:
        model.fit(
            given,
            epochs=math.ceil((1 + stay) * end / asked.every),
            steps_per_epoch=asked.every,
            shuffle=False,  # The batches are.
            verbose=0,
            callbacks=[clock],
        )
    except tf.errors.InvalidArgumentError as error:
        if "max_skipped_steps" not in str(error):
            raise
        failure = "diverged"
        if clock.record["steps"] is not None:
            clock.record["worst_after"] = math.inf
    found = {
        "task": task,
        "optimizer": optimizer,
        "arguments": arguments,
        "seed": seed,
        "after": after,
        "limit": limit,
        "stay": stay,
        "peak_mib": round(_peak() - before, 1),
        "state_mib": _state(made),
        **clock.record,
    }
    if failure or not np.isfinite(found["curve"][-1][1]):
        found["failure"] = "diverged"
    return found


def _forget_peak() -> None:
    """Has Linux take the resident set of now for the largest so far."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Returns the largest resident set so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _state(optimizer: keras.optimizers.Optimizer) -> float:
    """Returns the size of an optimizer's variables, in MiB."""
    variables = [v.value for v in optimizer.variables]
    size = sum(v.shape.num_elements() * v.dtype.size for v in variables)
    return size / 2**20


if __name__ == "__main__":
    print(json.dumps(train(**json.loads(sys.argv[1]))))
