"""Backups, checkpoints and whole models: damaged, of others, cut short."""

import functools
import json
import os
import resource
import signal
import zipfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import tfkfac
from tools.fault_campaign import faults, processes, small


class _Stop(keras.callbacks.Callback):
    """Interrupts a run after epochs, or in one."""

    def __init__(self, epochs, batch=None):
        super().__init__()
        self._epochs, self._batch, self._epoch = epochs, batch, 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self._epoch, batch) == (self._epochs, self._batch):
            raise InterruptedError

    def on_epoch_end(self, epoch, logs=None):
        if self._batch is None and epoch + 1 == self._epochs:
            raise InterruptedError


def _backup(folder, stop=None, model=None, **more):
    """Trains for 5 epochs with a backup; `stop` interrupts. Returns it."""
    model = small.compiled() if model is None else model
    backup = tfkfac.callbacks.BackupAndRestore(
        folder / "backup", delete_checkpoint=False, **more
    )
    try:
        small.fit(
            model, epochs=5, callbacks=[backup, *([stop] if stop else [])]
        )
    except InterruptedError:
        assert stop is not None
    return model


def _resumes(folder, spoil=lambda folder: None, model=None, **more):
    """A run that was interrupted, spoilt and resumed is the whole one."""
    _backup(folder, _Stop(3), **more)
    spoil(folder / "backup")
    other = small.compiled() if model is None else model()
    before = small.weights(other)
    try:
        _backup(folder, model=other, **more)
    except Exception:
        np.testing.assert_array_equal(small.weights(other), before)
        raise
    small.assert_same(other, small.fit(small.compiled(), epochs=5))


def _weights_file(backup: Path) -> Path:
    (path,) = backup.glob("*.weights.h5")
    return path


def _metadata(backup: Path, text=None, **changes):
    path = backup / "training_metadata.json"
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(found) if text is None else text)


def _flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _of_backup(name, spoil, **more):
    faults.add(
        "saved",
        f"backup: {name}",
        functools.partial(_resumes, spoil=spoil),
        refused=r"BackupAndRestore: .*backup.*(delete|Put back)",
        **more,
    )


faults.add("saved", "backup: interrupted", _resumes)
_of_backup("weights deleted", lambda b: _weights_file(b).unlink())
_of_backup("weights cut", lambda b: _cut(_weights_file(b)))
_of_backup("weights empty", lambda b: _weights_file(b).write_bytes(b""))
for _place in (0.0, 0.05, 0.3, 0.5, 0.7, 0.95, 1.0):
    _of_backup(
        f"weights with a bit flipped at {_place}",
        lambda b, place=_place: _flip(_weights_file(b), place),
    )
for _name, _text in {
    "cut": '{"epoch": 3',
    "empty": "",
    "a list": "[]",
    "a number": "3",
    "binary": "\x00\x01",
}.items():
    _of_backup(
        f"metadata {_name}", lambda b, text=_text: _metadata(b, text=text)
    )
for _key, _value in {
    "epoch": -7,
    "batch": "x",
    "weights": "no",
    "seeds": 3,
}.items():
    _of_backup(
        f"metadata with {_key} {_value}",
        lambda b, key=_key, value=_value: _metadata(b, **{key: value}),
    )


def _with(units, *more):
    layers = [
        keras.Input((6,)),
        keras.layers.Dense(4, "tanh", name="hidden"),
        keras.layers.Dense(units, name="logits"),
    ]
    return small.compiled(keras.Sequential([*layers, *more]))


for _name, _model in {
    "a wider layer": lambda: _with(5),
    "a layer more": lambda: _with(3, keras.layers.Dense(3)),
}.items():
    faults.add(
        "saved",
        f"backup: of a model with {_name}",
        functools.partial(_resumes, model=_model),
        refused="BackupAndRestore: .*another model.*shape.*Build the model",
    )
faults.add(
    "saved",
    "backup: of another optimizer",
    functools.partial(_resumes, model=lambda: small.compiled(optimizer="adam")),
    refused="BackupAndRestore: .*class = KFAC.*class = Adam.*Compile it as",
)


@faults.fault("saved")
def a_damaged_backup_of_which_there_is_a_copy(folder):
    """The copy is used."""

    def spoil(backup):
        main = [p for p in backup.rglob("*.h5") if "_" not in p.name]
        _flip(main[0], 0.5)

    _resumes(folder, spoil, double_checkpoint=True)


@faults.fault("saved")
def a_second_interruption_in_mid_epoch(folder):
    _backup(folder, _Stop(3))
    _backup(folder, _Stop(3, 1))
    model = _backup(folder)
    small.assert_same(model, small.fit(small.compiled(), epochs=5))


def _kill_in_rename(call, count):
    """Ends the process in the call of this number that renames a file."""
    function, calls = tf.io.gfile.rename, []

    def ending(*args, **more):
        calls.append(args)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **more)

    tf.io.gfile.rename = ending
    call()


@faults.fault("saved")
def a_kill_in_the_write_of_a_backup(folder):
    """Between the new weights and the metadata that names them."""
    ending = processes.run(
        lambda: _kill_in_rename(lambda: _backup(folder), count=4),
        folder / "killed.txt",
    )
    assert ending.kind == "died", ending
    model = _backup(folder)
    small.assert_same(model, small.fit(small.compiled(), epochs=5))


def _checkpoint(folder, name="best.keras", **more):
    return tfkfac.callbacks.ModelCheckpoint(folder / name, **more)


@faults.fault("saved", refused="best.keras cannot be written: .*make space")
def no_space_for_a_checkpoint(folder):
    """The last one stays whole, and nothing else is left."""
    model = small.fit(small.compiled(), callbacks=[_checkpoint(folder)])
    before = (folder / "best.keras").read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        small.fit(model, callbacks=[_checkpoint(folder)])
    finally:
        assert (folder / "best.keras").read_bytes() == before
        kept = {"best.keras", "output"}
        assert {p.name for p in folder.iterdir()} <= kept


@faults.fault("saved")
def a_checkpoint_in_memory(folder):
    """As Keras does it with ram://, and no folder of that name."""
    try:
        path = "ram://x/best.keras"
        callback = tfkfac.callbacks.ModelCheckpoint(path)
        small.fit(small.compiled(), callbacks=[callback])
        keras.models.load_model(path)
    finally:
        assert not [p for p in folder.iterdir() if "ram" in p.name]


def _saved(folder, **settings) -> Path:
    path = folder / "model.keras"
    small.fit(small.compiled(**settings)).save(path)
    return path


@faults.fault("saved")
def a_model_that_is_loaded_goes_on(folder):
    model = keras.models.load_model(_saved(folder))
    tfkfac.attach(model)
    small.assert_same(small.fit(model), small.fit(small.fit(small.compiled())))


@faults.fault("saved", refused="KFAC has no model.*tfkfac.attach")
def a_loaded_model_is_not_attached(folder):
    small.fit(keras.models.load_model(_saved(folder)))


def _member(folder, name, change):
    """Loads a model of which a member of the file is another."""
    path = _saved(folder)
    with zipfile.ZipFile(path) as file:
        members = {n: file.read(n) for n in file.namelist()}
    members[name] = change(members[name])
    with zipfile.ZipFile(path, "w") as file:
        for key, content in members.items():
            if content is not None:
                file.writestr(key, content)
    model = keras.models.load_model(path)
    tfkfac.attach(model)
    small.assert_same(small.fit(model), small.fit(small.fit(small.compiled())))


for _name, _change in {
    "without its weights": (
        "model.weights.h5",
        lambda c: None,
        "Expected a model.weights.h5",  # By Keras, as the next one.
    ),
    "without its configuration": (
        "config.json",
        lambda c: None,
        "no item named 'config.json' in the archive",
    ),
    "with a damping of -1": (
        "config.json",
        lambda c: c.replace(b'"damping": 0.1', b'"damping": -1.0'),
        r"KFAC\(damping=-1.*must be greater than 0",
    ),
}.items():
    faults.add(
        "saved",
        f"model file {_name}",
        functools.partial(_member, name=_change[0], change=_change[1]),
        refused=_change[2],
    )


@faults.fault("saved", refused="Bad CRC-32 for file 'model.weights.h5'")
def a_flipped_bit_in_a_model_file(folder):
    path = _saved(folder)
    _flip(path, 0.5)
    keras.models.load_model(path)


@faults.fault("saved", refused="curvature.*(take|load|use) ")
def a_state_tree_without_the_curvature(folder):
    model = small.fit(small.compiled())
    tree = model.get_state_tree()
    tree["optimizer_variables"]["kfac"].pop("curvature")
    keras.utils.clear_session()  # The names are the same.
    other = small.compiled()
    other.set_state_tree(tree)
    small.unchanged(other, lambda: small.fit(other))


@faults.fault("saved", refused="restored without its curvature. Load a file")
def a_state_copied_without_the_curvature(folder):
    """The next step says so."""
    model, other = small.fit(small.compiled()), small.compiled()
    small.fit(other, small.X[:8], small.Y[:8])
    store = {}
    model.optimizer.save_own_variables(store)
    count = sum(
        not v.path.count("curvature") for v in model.optimizer.variables
    )
    for own, value in zip(
        other.optimizer.variables[:count], model.optimizer.variables
    ):
        own.assign(value)
    small.unchanged(other, lambda: small.fit(other))
