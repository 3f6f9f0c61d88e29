"""`ModelCheckpoint` and `BackupAndRestore` on one process.

`distributed_restores` has them on several.
"""

import contextlib
import json
import pathlib

import keras
import numpy as np
import pytest

import tfkfac
from tfkfac import callbacks

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = RNG.integers(0, 3, 24)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="tanh", name="hidden"),
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.Dense(3, name="logits"),
        ]
    )
    model.compile(tfkfac.KFAC(0.05, damping=0.1, model=model), LOSS)
    return model


def fit(model, *given, epochs=3):
    model.fit(
        X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0,
        callbacks=list(given),
    )  # fmt: skip


class Die(keras.callbacks.Callback):
    """Ends training as an interruption does, before the third epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def state(model):
    """Returns all but the states of seeds, which no `.keras` file restores."""
    values = [v.numpy() for v in model.weights + model.optimizer.variables]
    return values + list(model.optimizer.curvature.state().values())


def assert_same(a, b):
    for x, y in zip(state(a), state(b), strict=True):
        np.testing.assert_array_equal(x, y)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_holds_the_curvature_under_its_name_alone(tmp_path):
    """No part of a file stays, and the model saves as before afterwards."""
    model = compiled()
    methods = model.save, model.save_weights
    path = tmp_path / "new" / "last.keras"
    fit(model, callbacks.ModelCheckpoint(path))
    assert names(path.parent) == ["last.keras"]
    restored = keras.models.load_model(path)
    tfkfac.attach(restored)
    assert_same(restored, model)
    assert (model.save, model.save_weights) == methods


def test_a_save_that_fails_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    model = compiled()
    path = tmp_path / "last.weights.h5"
    checkpoint = callbacks.ModelCheckpoint(path, save_weights_only=True)
    fit(model, checkpoint, epochs=1)
    before = path.read_bytes()

    def fail(filepath, **_):
        pathlib.Path(filepath).write_text("half of it")
        raise OSError("no space left")

    monkeypatch.setattr(model, "save_weights", fail)
    with pytest.raises(OSError, match="no space left"):
        fit(model, checkpoint, epochs=1)
    assert names(tmp_path) == ["last.weights.h5"]
    assert path.read_bytes() == before
    assert model.save_weights is fail


def test_resumed_from_a_backup_equals_uninterrupted(tmp_path):
    """Bit for bit, the state of the dropout's seed too; the folder is left."""
    whole = compiled()
    fit(whole)
    folder = tmp_path / "backup"
    with contextlib.suppress(KeyboardInterrupt):
        fit(compiled(), Die(), callbacks.BackupAndRestore(folder))
    assert names(folder) == ["2-0.weights.h5", "training_metadata.json"]
    resumed = compiled()
    fit(resumed, callbacks.BackupAndRestore(folder))
    assert_same(resumed, whole)
    for a, b in zip(resumed.variables, whole.variables):
        np.testing.assert_array_equal(a, b)  # The states of seeds, too.
    assert not folder.exists()


def flipped(path, place=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(bytes(data))


def rewritten(**changes):
    def change(folder):
        path = folder / "training_metadata.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def written(text):
    return lambda folder: (folder / "training_metadata.json").write_text(text)


DAMAGE = {
    "weights deleted": lambda f: (f / "2-0.weights.h5").unlink(),
    "a bit of the weights": lambda f: flipped(f / "2-0.weights.h5"),
    "a bit of the head": lambda f: flipped(f / "2-0.weights.h5", 0.01),
    "weights cut": lambda f: (f / "2-0.weights.h5").write_bytes(b"\x89HDF"),
    "metadata cut": written('{"epoch": 2, "ba'),
    "metadata empty": written(""),
    "metadata a list": written("[]"),
    "metadata a number": written("3"),
    "metadata binary": lambda f: (f / "training_metadata.json").write_bytes(
        b"\xff\xfe\x00"
    ),
    "another epoch": rewritten(epoch=-7),
    "an epoch of text": rewritten(epoch="2"),
    "other weights": rewritten(weights="../2-0.weights.h5"),
    "weights of no name": rewritten(weights=5),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_backup_that_is_not_whole_is_named_and_left(damage, tmp_path):
    folder = tmp_path / "backup"
    with contextlib.suppress(KeyboardInterrupt):
        fit(compiled(), Die(), callbacks.BackupAndRestore(folder))
    DAMAGE[damage](folder)
    there = {path: path.read_bytes() for path in folder.iterdir()}
    model = compiled()
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"{folder}.*to train from the begin"):
        fit(model, callbacks.BackupAndRestore(folder))
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)
    assert {path: path.read_bytes() for path in folder.iterdir()} == there
