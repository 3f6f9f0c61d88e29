"""Callbacks for `fit` that save a model once, whole, on any number of ranks."""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterator

import keras
import tensorflow as tf
from absl import logging
from tensorflow.io import gfile

from tfkfac import keras_compat
from tfkfac.callbacks.distributed import average_statistics, gather
from tfkfac.distributed import communicator, sync
from tfkfac.distributed.loss_scale import unwrapped
from tfkfac.optimizer import KFAC

_SUFFIX = ".weights.h5"


class ModelCheckpoint(keras.callbacks.ModelCheckpoint):
    """Keras' `ModelCheckpoint`, written whole by rank 0 alone."""

    def _save_model(self, epoch, batch, logs):
        within = "" if batch is None else f", after batch {batch + 1}"
        _gather(self.model, f"in ModelCheckpoint, epoch {epoch + 1}{within}")
        if communicator.current().rank == 0:
            with _whole_files(self.model):
                super()._save_model(epoch, batch, logs)


class BackupAndRestore(keras.callbacks.BackupAndRestore):
    """Keras' `BackupAndRestore`, written whole by rank 0 alone.

    All ranks restore from it: the folder must be one that all of them see. The
    states of seed generators, as of dropout, are each rank's own; on another
    number of ranks all but the first start with new ones. With
    `double_checkpoint` the backup before the last one stays, and takes the
    place of a damaged one.

    Raises:
        ValueError: `fit` was to go on from a backup of which a file is missing
            or damaged, and there is no copy, or that is of another model or
            optimizer; the message names it. Nothing is changed.
        RuntimeError: The ranks see different backups.
    """

    _last: dict | None = None  # The metadata of the last backup.

    def on_train_begin(self, logs=None):
        ranks = communicator.current()
        name = sync.first_collective(self.model.optimizer)
        self._last = self.find(ranks, name)
        if self._last is None:
            return
        self._require_same_optimizer()
        if not self.model.built:
            raise ValueError(
                f"BackupAndRestore: build {self.model.name!r}, or call it on "
                "a batch, before fit: there is a backup to go on from."
            )
        self._require_same_weights()
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        seeds = sync.seeds(self.model)
        own = [v.numpy() for v in seeds]
        self.model.load_weights(self._path(self._last["weights"]))
        keras_compat.begin_with_epoch(self.model, self._last["epoch"])
        saved = self._last["seeds"]
        if len(saved) == ranks.size or ranks.rank == 0:
            own = saved[ranks.rank]
        for v, value in zip(seeds, own):
            v.assign(value)

    def _require_same_optimizer(self):
        own = _kind(self.model.optimizer)
        saved = self._last.get("optimizer", own)
        for name, value in own.items():
            if saved.get(name, value) != value:
                raise ValueError(
                    f"BackupAndRestore: the backup in {self.backup_dir} is of "
                    f"an optimizer with {name} = {saved.get(name)}, and the "
                    f"model is compiled with one with {name} = {value}. "
                    "Compile it as it was, or give another folder."
                )

    def _require_same_weights(self):
        own = _weights(self.model)
        both = itertools.zip_longest(self._last.get("model", own), own)
        for i, (saved, weight) in enumerate(both):
            if saved != weight:
                raise ValueError(
                    f"BackupAndRestore: the backup in {self.backup_dir} is of "
                    f"another model: the shape of its weight {i} is {saved}, "
                    f"and {weight} in {self.model.name!r} (None: there is "
                    "none). Build the model as it was, with the same layers "
                    "frozen, or give another folder."
                )

    def _path(self, name: str) -> str:
        return os.path.join(self.backup_dir, name)

    def find(
        self, ranks: communicator.Communicator, name: str = "tfkfac.objects"
    ) -> dict | None:
        """Returns the metadata of the backup to go on from; None for none.

        To be called on all ranks; it raises on all of them or on none.

        Args:
            ranks: The ranks.
            name: Of the collective, as of `gather_objects`.
        """
        found, failure = None, None
        try:
            found = self._read_last()
        except ValueError as error:
            failure = error
        of_ranks = ranks.gather_objects(
            (found, failure and str(failure)),
            "in BackupAndRestore, at the beginning of training",
            name,
        )
        if failure is not None:
            raise failure
        for rank, (other, message) in enumerate(of_ranks):
            if message is not None:
                raise ValueError(f"Rank {rank}: {message}")
            if other != of_ranks[0][0]:
                raise RuntimeError(
                    f"BackupAndRestore: rank {rank} sees another backup in "
                    f"{self.backup_dir} than rank 0, or none: give all ranks a "
                    "folder that all of them see."
                )
        return found

    def _read_last(self) -> dict | None:
        """Returns the metadata of the last backup that is whole; None where
        there is none; ValueError where none is whole."""
        folder = self.backup_dir
        if gfile.exists(folder) and not gfile.isdir(folder):
            raise ValueError(
                f"BackupAndRestore: backup_dir={folder} is a file: give a "
                "folder."
            )
        paths = self._training_metadata_path, self._prev_training_metadata_path
        first = None
        for path in filter(gfile.exists, paths):
            try:
                found = _read(path)
            except ValueError as error:
                first = first or error
                continue
            if first is not None:
                logging.warning("%s This run goes on from %s.", first, path)
            return found
        if first is not None:
            raise first
        return None

    def on_epoch_begin(self, epoch, logs=None):
        self._current_epoch = epoch
        keras_compat.begin_with_epoch(self.model, None)  # As the next `fit`.

    def _save_model(self):
        place = (
            f"in BackupAndRestore, {self._current_epoch} epochs and "
            f"{self._last_batch_seen} batches done"
        )
        _gather(self.model, place)
        seeds = [v.numpy().tolist() for v in sync.seeds(self.model)]
        seeds = gather(self.model, seeds, place)
        if communicator.current().rank > 0:
            return
        gfile.makedirs(self.backup_dir)
        name = f"{self._current_epoch}-{self._last_batch_seen}"
        while gfile.exists(self._path(name + _SUFFIX)):
            name += "+"  # A backup stays whole until the next one is.
        metadata = {
            "epoch": self._current_epoch,
            "batch": self._last_batch_seen,
            "seeds": seeds,
            "weights": name + _SUFFIX,
            "optimizer": _kind(self.model.optimizer),
            "model": _weights(self.model),
        }
        weights = self._path(metadata["weights"])
        with _whole_files(self.model):
            self.model.save_weights(weights)
        metadata["digest"] = _digest(metadata, weights)
        kept = {metadata["weights"]}
        previous = self._prev_training_metadata_path
        if self.double_checkpoint and self._last is not None:
            _write(previous, self._last)
            kept.add(self._last["weights"])
        _write(self._training_metadata_path, metadata)
        self._last = metadata
        # From here on the new file counts, and the old ones can go.
        if len(kept) == 1 and gfile.exists(previous):
            gfile.remove(previous)
        for old in gfile.listdir(self.backup_dir):
            if old.endswith(_SUFFIX) and old not in kept:
                gfile.remove(self._path(old))

    def on_train_end(self, logs=None):
        keras_compat.begin_with_epoch(self.model, None)
        gather(self.model, None, "at the end of training")  # All have restored.
        if communicator.current().rank == 0:
            super().on_train_end(logs)


def _kind(optimizer: keras.optimizers.Optimizer) -> dict:
    """Returns what an optimizer's state is of, as JSON holds it."""
    inner = unwrapped(optimizer)
    kind = {
        "class": type(inner).__name__,
        "gradient_accumulation_steps": inner.gradient_accumulation_steps,
    }
    return kind | inner.kind_of_state() if isinstance(inner, KFAC) else kind


def _weights(model: keras.Model) -> list[str]:
    """Returns the shapes of the weights, in their order, and what is frozen."""
    kinds = "frozen", "trained"
    return [f"{list(v.shape)}, {kinds[v.trainable]}" for v in model.weights]


def _write(path: str, metadata: dict) -> None:
    with _whole(path) as part, gfile.GFile(part, "w") as file:
        file.write(json.dumps(metadata))


def _read(path: str) -> dict:
    """Returns the metadata of a backup; ValueError where it is not whole."""
    try:
        with gfile.GFile(path, "rb") as file:
            metadata = json.loads(file.read())
        weights = os.path.join(os.path.dirname(path), metadata["weights"])
        digest = metadata["digest"]
    except (ValueError, TypeError, KeyError, tf.errors.OpError) as error:
        raise _broken(path, "cannot be read as a backup's") from error
    of = os.path.basename(path)
    try:
        is_whole = _digest(metadata, weights) == digest
    except tf.errors.OpError as error:
        raise _broken(weights, f"of {of} cannot be read") from error
    if not is_whole:
        raise _broken(weights, f"or {of} is damaged")
    return metadata


def _broken(path, what) -> ValueError:
    return ValueError(
        f"BackupAndRestore: {path} {what}. Put back the files as they were, or "
        f"delete {os.path.dirname(path)} to train from the beginning."
    )


def _digest(metadata: dict, weights: str) -> str:
    """Returns the SHA-256 of metadata but for it, and of the weights' file."""
    known = {k: v for k, v in metadata.items() if k != "digest"}
    found = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    with gfile.GFile(weights, "rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def _gather(model, place) -> None:
    """Makes the model on rank 0 what is to be saved."""
    average_statistics(model, place)
    optimizer = unwrapped(model.optimizer)
    if isinstance(optimizer, KFAC):
        optimizer.gather_curvature()
    else:
        sync.join_sums(optimizer, communicator.current())


@contextlib.contextmanager
def _whole(path: str) -> Iterator[str]:
    """Gives a path to write to, of what appears as `path` when complete."""
    name = os.path.basename(path)  # The folder may be a bucket.
    part = path.removesuffix(name) + "part." + name
    try:
        yield part
        gfile.rename(part, path, overwrite=True)
    except (OSError, tf.errors.OpError) as error:
        raise OSError(
            f"{path} cannot be written: {error}. What was there before is "
            "whole; make space, or give another path."
        ) from error
    finally:
        if gfile.exists(part):
            gfile.remove(part)


@contextlib.contextmanager
def _whole_files(model):
    """Within it, what the model saves appears under its name when complete."""

    def whole(save):
        def save_whole(filepath, *args, **kwargs):
            with _whole(os.fspath(filepath)) as part:
                save(part, *args, **{**kwargs, "overwrite": True})

        return save_whole

    with keras_compat.replaced(
        model,
        save=whole(model.save),
        save_weights=whole(model.save_weights),
    ):
        yield
