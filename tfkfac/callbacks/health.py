"""A callback for `fit` that tells how K-FAC is while it trains."""

import contextlib
import math
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from absl import logging

from tfkfac.analysis import health
from tfkfac.analysis.findings import findings
from tfkfac.analysis.page import thinned
from tfkfac.attached_model import attached_to
from tfkfac.callbacks.health_log import HealthLog, LogError
from tfkfac.callbacks.monitoring import kfac_of
from tfkfac.distributed.loss_scale import unwrapped
from tfkfac.readings import COUNTS
from tfkfac.trust_region import TrustRegion


class Health(keras.callbacks.Callback):
    """Writes a page that tells how K-FAC is, and what to do about it.

    At the end of each epoch, after a skipped update and, if asked, every so
    many updates it makes a record. Of each layer it has the condition of its
    factors, the split and the size of the damping, the age of the inverse, how
    far the factors have moved since, and the layer's share of the step; of the
    whole the skipped updates, failed inversions, the KL clip, and the time of
    updates by what was due in them. The records go to a file of JSON lines, a
    few numbers to the `logs` (`kfac_clip` and others, for the progress bar or
    `CSVLogger`), and all of it to one page with pictures, which is whole
    whenever it is there. `docs/health.md` explains it.

    On several ranks all of them need the callback, and rank 0 writes. A run
    that goes on from a checkpoint goes on with the records of its directory;
    one that begins with update 0 begins them anew.

    After each batch it reads five numbers, for which it waits until the batch
    is done, as a progress bar does. With `steps_per_execution`, updates of all
    kinds are timed together.

    Args:
        directory: Where "health.jsonl" and "health.html" go; None for nowhere.
        every: The updates from one record to the next within an epoch; None
            for its end alone.
        tensorboard: Whether the numbers are also written for TensorBoard, in
            "tensorboard" in the directory.

    Attributes:
        records: The records, oldest first. Of the layers all but the last have
            the numbers alone that the page has curves of; the file has all.
            Ranks above 0 have the last record alone.

    Where a file cannot be written, or that of the records holds something else,
    a warning names it, and training goes on without the files.

    Raises:
        TypeError: The model is compiled with another optimizer.
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        directory: str | os.PathLike | None = "health",
        *,
        every: int | None = None,
        tensorboard: bool = False,
    ):
        super().__init__()
        if every is not None and not (isinstance(every, int) and every > 0):
            raise ValueError(
                f"Health(every={every!r}): must be a positive integer or None."
            )
        if tensorboard and directory is None:
            raise ValueError(
                "Health(tensorboard=True) needs a directory to write to."
            )
        self.records: list[dict[str, Any]] = []
        self._directory = None if directory is None else pathlib.Path(directory)
        self._every, self._tensorboard = every, tensorboard
        self._log: HealthLog | None = None
        self._said: set[str] = set()
        self._is_first = False  # Whether an update builds the graph.

    def set_model(self, model):
        """Has steps note what they do, before `fit` makes its function.

        What was traced before notes nothing, and is traced anew. Callbacks that
        wrap the function when training begins so wrap the one that runs.
        """
        super().set_model(model)
        optimizer = unwrapped(getattr(model, "optimizer", None))
        for attached in attached_to(model):
            if attached.optimizer is optimizer and not attached.is_watched:
                attached.watch()
                model.train_function = None
        self._is_first = model.train_function is None

    def on_train_begin(self, logs=None):
        self._optimizer = optimizer = kfac_of(self.model, "Health")
        self._attached = attached = optimizer.require_attached()
        self._ranks = attached.communicator
        if self._directory is not None and self._ranks.rank == 0:
            with self._log_may_fail():
                self._log = HealthLog(self._directory, self._tensorboard)
        # What was noted before, in a `fit` without the callback.
        self._readings, self._seen = attached.readings, np.zeros(len(COUNTS))
        if self._readings is not None:
            self._seen = self._readings.read_counts()
            self._readings.begin_sums()
        self._start: int | None = None  # The update that `fit` begins with.
        self._has_begun = False  # Whether there was a record.
        self._seconds = 0.0  # Since the last update.
        self._begin_interval()

    @contextlib.contextmanager
    def _log_may_fail(self) -> Iterator[None]:
        """Has training go on without a log, if its files are what fails."""
        try:
            yield
        except LogError as error:
            self._log = None
            logging.warning(
                "Health: %s. Training goes on, and nothing more is written "
                "there.",
                error,
            )

    def _begin_interval(self):
        self._counts = dict.fromkeys(COUNTS, 0)
        self._stages: dict[str, list[float]] = {}
        self._own_seconds = 0.0

    def on_train_batch_begin(self, batch, logs=None):
        if self._start is None:
            # After other callbacks have restored the state.
            self._start = int(self._optimizer.updates)
        self._since = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        new = self._new_counts()
        now = time.perf_counter()
        self._seconds += now - self._since
        made = new["updates"] + new["skipped"]
        if made:
            stage = self._stages.setdefault(self._stage(new), [0, 0.0])
            stage[0] += made
            stage[1] += self._seconds
            self._is_first, self._seconds = False, 0.0
            for name, number in new.items():
                self._counts[name] += number
            every = self._every or math.inf
            if self._counts["updates"] >= every or new["skipped"]:
                self._record(logs)
            if new["skipped"]:  # A few more may end the run.
                self._write_page()
        self._own_seconds += time.perf_counter() - now

    def _new_counts(self) -> dict[str, int]:
        """Returns what has been counted since it was asked last."""
        readings = self._attached.readings
        if readings is None:
            raise RuntimeError(
                "Health: the train_step of this model is a tf.function of its "
                "own, traced before `fit`: give it another, or none."
            )
        if readings is not self._readings:  # The layers are others now.
            self._readings, self._seen = readings, np.zeros(len(COUNTS), int)
        counts = readings.read_counts()
        new, self._seen = counts - self._seen, counts
        return dict(zip(COUNTS, new.tolist()))

    def _stage(self, new: dict[str, int]) -> str:
        """Returns what kind of update it was."""
        if self._is_first:
            return "first"
        if new["updates"] + new["skipped"] > 1:
            return "several at once"
        if new["skipped"]:
            return "skipped"
        if new["inversions"]:
            return "inverses"
        return "factors" if new["factors"] else "plain"

    def on_epoch_end(self, epoch, logs=None):
        start = time.perf_counter()
        if self._readings is not None:
            self._record(logs, epoch + 1)
            if logs is not None:
                logs.update(self._summary())
            self._write_page(in_any_case=False)
        self._own_seconds += time.perf_counter() - start

    def on_train_end(self, logs=None):
        self._write_page()
        if self._log is not None:
            with self._log_may_fail():
                self._log.close()
        if self._directory is None or self._ranks.rank > 0:
            return
        for finding in findings(self.records[-1]) if self.records else ():
            if finding.is_warning and finding.kind not in self._said:
                self._said.add(finding.kind)
                logging.warning("Health: %s", finding.sentence())

    def _write_page(self, in_any_case=True):
        if self._log is not None and self.records:
            found = findings(self.records[-1])
            with self._log_may_fail():
                self._log.write_page(self.records, found, in_any_case)

    # Records.

    def _record(self, logs, epoch=None):
        """Makes a record, on all ranks together."""
        layers = self._layers()
        if not self._has_begun:
            self._go_on()
        record = self._numbers(logs or {}, epoch) | {"layers": layers}
        self._readings.begin_sums()
        self._begin_interval()
        if self._ranks.rank > 0:
            self.records.clear()
        self.records[-1:] = [*map(thinned, self.records[-1:]), record]
        if self._log is not None:
            with self._log_may_fail():
                self._log.add(record, self._summary())

    def _go_on(self):
        """Goes on with the records up to the update that `fit` began with."""
        earlier = self._earlier()
        shared = self._ranks.broadcast_object(earlier[-1:])
        self.records = earlier if self._ranks.rank == 0 else shared
        self._has_begun = True

    def _earlier(self) -> list[dict[str, Any]]:
        """Returns those records."""
        start = self._start
        if start is None:  # There was no batch.
            start = int(self._optimizer.updates)
        is_known = self.records and self.records[-1]["update"] <= start
        if self._log is not None and not is_known:
            with self._log_may_fail():
                return self._log.begin(start)
        return [r for r in self.records if 0 < r["update"] <= start]

    def _layers(self) -> dict[str, dict[str, Any]]:
        """Returns the numbers of all layers, with sums as shares."""
        own = health.of_layers(self._optimizer, self._readings)
        layers: dict[str, dict[str, Any]] = {}
        for rank, of_rank in enumerate(self._ranks.gather_objects(own)):
            layers |= {k: v | {"rank": rank} for k, v in of_rank.items()}
        steps = sum(layer["step"] or 0.0 for layer in layers.values())
        ordered = {}
        for block in self._attached.layers.registration.blocks:
            layer = layers[block.path]
            shares = layer.pop("shares")
            updates = max(self._counts["updates"], 1)
            layer["share"] = None if shares is None else shares / updates
            layer["step"] = (layer["step"] or 0.0) / (steps or 1.0)
            ordered[block.path] = layer
        return ordered

    def _numbers(self, logs, epoch) -> dict[str, Any]:
        """Returns what is the same on all ranks, and of the whole."""
        optimizer, layers = self._optimizer, self._attached.layers
        updates = self._counts["updates"]
        before = self.records[-1]["so_far"] if self.records else {}
        kl_clip = optimizer.hyperparameters.get("kl_clip")
        registration = layers.registration
        reasons = zip(registration.fallback, registration.reasons)
        numbers = {
            "learning_rate": optimizer.learning_rate,
            "damping": optimizer.damping,
            "kl_clip": optimizer.kl_clip,
            "clip": float(self._readings.clip) / updates if updates else None,
        }
        return {
            "update": int(optimizer.updates),
            "epoch": epoch,
            "model": self.model.name,
            "ranks": self._ranks.size,
            "metrics": _scalars(logs),
            **_scalars(numbers),
            "kl_clip_adapts": isinstance(kl_clip, TrustRegion)
            and kl_clip.adapts,
            "skipped": int(optimizer.skipped_steps),
            "updates": updates,
            "clipped": self._counts["clipped"],
            "so_far": {
                k: before.get(k, 0) + self._counts[k]
                for k in ("updates", "clipped")
            },
            "stages": self._stages,
            "health_seconds": self._own_seconds,
            "fallback": layers.fallback.name,
            "uncovered": {
                v.path: why for v, why in reasons if why != "named in skip"
            },
        }

    def _summary(self) -> dict[str, float]:
        """Returns the few numbers that go to the logs, always the same."""
        record = self.records[-1]
        layers = record["layers"].values()
        conditions = [layer["condition"] or 0.0 for layer in layers]
        numbers = {
            "skipped": record["skipped"],
            "failed": sum(layer["failed"] for layer in layers),
            "condition": max(conditions, default=0.0),
            "warnings": sum(x.is_warning for x in findings(record)),
        }
        if self._optimizer.kl_clip is not None:
            for name in ("clip", "kl_clip"):
                known = record[name] is not None
                numbers[name] = record[name] if known else math.nan
        return {f"kfac_{name}": value for name, value in numbers.items()}


def _scalars(values) -> dict[str, float | None]:
    """Returns the scalars among values; None for what is not finite."""
    found = {
        k: math.nan if v is None else float(v)
        for k, v in values.items()
        if np.ndim(v) == 0 and (v is None or hasattr(v, "__float__"))
    }
    return {k: v if math.isfinite(v) else None for k, v in found.items()}
