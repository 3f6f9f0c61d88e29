"""Callbacks for `fit` that save a model once, whole, on any number of ranks."""

import contextlib
import hashlib
import json
import os
import pathlib

import keras

from tfkfac import keras_compat
from tfkfac.callbacks.distributed import average_statistics, gather
from tfkfac.distributed import communicator, sync
from tfkfac.distributed.loss_scale import unwrapped
from tfkfac.optimizer import KFAC


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
    number of ranks all but the first start with new ones.

    Raises:
        ValueError: `fit` was to go on from a backup of which a file is missing
            or damaged; the message names it. Nothing is changed.
    """

    def _load_model(self):
        if os.path.exists(self._training_metadata_path):
            metadata = _read(pathlib.Path(self._training_metadata_path))
            self._weights_path = os.path.join(
                self.backup_dir, metadata["weights"]
            )
            ranks = communicator.current()
            seeds = sync.seeds(self.model)
            own = [v.numpy() for v in seeds]
            super()._load_model()
            saved = metadata["seeds"]
            if len(saved) == ranks.size or ranks.rank == 0:
                own = saved[ranks.rank]
            for v, value in zip(seeds, own):
                v.assign(value)

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
        folder = pathlib.Path(self.backup_dir)
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {
            "epoch": self._current_epoch,
            "batch": self._last_batch_seen,
            "seeds": seeds,
        }
        metadata["weights"] = "{epoch}-{batch}.weights.h5".format(**metadata)
        with _whole_files(self.model):
            self.model.save_weights(folder / metadata["weights"])
        metadata["digest"] = _digest(metadata, folder / metadata["weights"])
        # From here on the new file counts, and the old ones can go.
        path = pathlib.Path(self._training_metadata_path)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(metadata))
        os.replace(part, path)
        for old in folder.glob("*.weights.h5"):
            if old.name != metadata["weights"]:
                old.unlink()

    def on_train_end(self, logs=None):
        gather(self.model, None, "at the end of training")  # All have restored.
        if communicator.current().rank == 0:
            super().on_train_end(logs)


def _read(path: pathlib.Path) -> dict:
    """Returns the metadata of a backup; ValueError where it is not whole."""
    try:
        metadata = json.loads(path.read_text())
        weights = path.parent / metadata["weights"]
        digest = metadata.pop("digest")
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise _broken(path, "cannot be read as a backup's") from error
    try:
        is_whole = _digest(metadata, weights) == digest
    except OSError as error:
        raise _broken(weights, f"of {path.name} cannot be read") from error
    if not is_whole:
        raise _broken(weights, f"or {path.name} is damaged")
    return metadata


def _broken(path, what) -> ValueError:
    return ValueError(
        f"BackupAndRestore: {path} {what}. Put back the files as they were, or "
        f"delete {path.parent} to train from the beginning."
    )


def _digest(metadata: dict, weights: pathlib.Path) -> str:
    """Returns the SHA-256 of metadata and of the file of weights."""
    found = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    with weights.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def _gather(model, place) -> None:
    """Makes the model on rank 0 what is to be saved."""
    average_statistics(model, place)
    optimizer = unwrapped(model.optimizer)
    if isinstance(optimizer, KFAC):
        optimizer.gather_curvature()


@contextlib.contextmanager
def _whole_files(model):
    """Within it, what the model saves appears under its name when complete."""

    def whole(save):
        def save_whole(filepath, *args, **kwargs):
            path = pathlib.Path(filepath)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name("part." + path.name)
            try:
                save(part, *args, **{**kwargs, "overwrite": True})
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)

        return save_whole

    with keras_compat.replaced(
        model,
        save=whole(model.save),
        save_weights=whole(model.save_weights),
    ):
        yield
