"""`ModelCheckpoint` and `BackupAndRestore` on one process.

`distributed_restores` has them on several.
"""

import contextlib
import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
import two_ranks
from tensorflow.io import gfile

import tfkfac
from tfkfac import callbacks

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = RNG.integers(0, 3, 24)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(units=3, *more):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="tanh", name="hidden"),
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.Dense(units, name="logits"),
            *more,
        ]
    )
    model.compile(tfkfac.KFAC(0.05, damping=0.1, model=model), LOSS)
    return model


def half_frozen():
    model = compiled()
    model.get_layer("hidden").trainable = False
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
    with pytest.raises(
        OSError, match="last.weights.h5 cannot.*space left.*give"
    ):
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
    for model in (resumed, whole):  # It begins with epoch 0.
        fit(model, epochs=1)
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


@pytest.fixture(scope="module")
def backed_up(tmp_path_factory):
    """The folder of an interrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "backup"
    with contextlib.suppress(KeyboardInterrupt):
        fit(compiled(), Die(), callbacks.BackupAndRestore(folder))
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_backup_that_is_not_whole_is_named_and_left(
    damage, backed_up, tmp_path
):
    folder = tmp_path / "backup"
    shutil.copytree(backed_up, folder)
    DAMAGE[damage](folder)
    there = {path: path.read_bytes() for path in folder.iterdir()}
    model = compiled()
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"{folder}.*to train from the begin"):
        fit(model, callbacks.BackupAndRestore(folder))
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)
    assert {path: path.read_bytes() for path in folder.iterdir()} == there


@pytest.mark.parametrize(
    "given, said",
    [
        (None, "class = KFAC.* class = Adam"),
        (
            {"inverter": "eigen"},
            "inverter = CholeskyInverter.* inverter = EigenInverter",
        ),
        (
            {"gradient_accumulation_steps": 2},
            "gradient_accumulation_steps = None.* = 2",
        ),
        ({"damping": "auto"}, "damping = a number.* = auto"),
        ({"kl_clip": 0.1}, "kl_clip = auto.* = a number"),
        (
            {"inverse_update_period": 5},
            "inverse_update_period = auto.* = a number",
        ),
        ({"skip": ["hidden"]}, r"skip = \[\].* = \['hidden'\]"),
    ],
    ids=["adam", "eigen", "window", "damping", "bound", "period", "skip"],
)
def test_a_backup_of_another_optimizer_is_refused(
    given, said, backed_up, tmp_path
):
    folder = tmp_path / "backup"
    shutil.copytree(backed_up, folder)
    model = compiled()
    optimizer = "adam"
    if given is not None:
        optimizer = tfkfac.KFAC(**{"damping": 0.1, **given}, model=model)
    model.compile(optimizer, LOSS)
    before = model.get_weights()
    with pytest.raises(ValueError, match=said):
        fit(model, callbacks.BackupAndRestore(folder))
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)
    assert names(folder) == names(backed_up)


@pytest.mark.parametrize(
    "made, said",
    [
        (lambda: compiled(4), r"weight 2 is \[5, 3\], trained, and \[5, 4\]"),
        (
            lambda: compiled(3, keras.layers.Dense(2)),
            r"weight 4 is None, and \[3, 2\]",
        ),
        (half_frozen, r"weight 0 is \[4, 5\], trained, and .*, frozen"),
    ],
    ids=["wider", "deeper", "frozen"],
)
def test_a_backup_of_another_model_is_refused(made, said, backed_up):
    """Before any weight is loaded."""
    model = made()
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"{said}.*Build the model as it was"):
        fit(model, callbacks.BackupAndRestore(backed_up))
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)


def test_a_folder_for_backups_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("text")
    with pytest.raises(ValueError, match=f"{path} is a file: give a folder"):
        fit(compiled(), callbacks.BackupAndRestore(path))
    assert path.read_text() == "text"


def test_a_damaged_backup_gives_way_to_the_one_before(tmp_path):
    """To its end as without an interruption, epoch 1 once more."""
    whole = compiled()
    fit(whole)
    folder = tmp_path / "backup"

    def backup(**options):
        return callbacks.BackupAndRestore(
            folder, double_checkpoint=True, **options
        )

    with contextlib.suppress(KeyboardInterrupt):
        fit(compiled(), Die(), backup())
    weights = ["1-0.weights.h5", "2-0.weights.h5"]
    files = ["training_metadata.json", "training_metadata.json.bkp"]
    assert names(folder) == weights + files
    flipped(folder / "2-0.weights.h5")
    resumed = compiled()
    fit(resumed, backup(delete_checkpoint=False))
    assert_same(resumed, whole)
    # The backup before was the one that it went on from.
    assert names(folder) == ["2-0+.weights.h5", "3-0.weights.h5", *files]
    flipped(folder / "3-0.weights.h5")
    (folder / files[1]).write_text("")
    with pytest.raises(ValueError, match="3-0.weights.h5 or .* is damaged"):
        fit(compiled(), backup())


class Note(keras.callbacks.Callback):
    """Notes the epochs, and dies in the second batch of the third one."""

    def __init__(self, dies):
        super().__init__()
        self.dies, self.epochs = dies, []

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        if self.dies and (self.epochs[-1], batch) == (2, 1):
            raise KeyboardInterrupt


def test_a_second_interruption_in_mid_epoch(tmp_path):
    """The epoch goes on to be the third; no file of a backup is written over
    before the next one is whole."""
    epochs = []
    for dies in (True, True, False):
        note = Note(dies)
        with contextlib.suppress(KeyboardInterrupt):
            fit(
                compiled(),
                note,
                callbacks.BackupAndRestore(tmp_path / "backup", save_freq=1),
            )
        epochs.append(note.epochs)
        if dies:
            (weights, _) = names(tmp_path / "backup")
            assert weights == "2-0" + "+" * (len(epochs) - 1) + ".weights.h5"
    assert epochs == [[0, 1, 2], [2], [2]]


@pytest.mark.parametrize("scheme", ["ram://", "file://"])
def test_files_where_tensorflow_puts_them(scheme, tmp_path, monkeypatch):
    """As Keras' own callbacks; nothing appears in a folder of that name."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = f"{scheme}{tmp_path}/remote"
    whole = compiled()
    fit(whole, callbacks.ModelCheckpoint(f"{folder}/last.keras"))
    assert gfile.listdir(folder) == ["last.keras"]
    gfile.copy(f"{folder}/last.keras", str(tmp_path / "copy.keras"))
    restored = keras.models.load_model(tmp_path / "copy.keras")
    tfkfac.attach(restored)
    assert_same(restored, whole)
    backup = f"{folder}/backup"
    with contextlib.suppress(KeyboardInterrupt):
        fit(compiled(), Die(), callbacks.BackupAndRestore(backup))
    found = sorted(gfile.listdir(backup))
    assert found == ["2-0.weights.h5", "training_metadata.json"]
    resumed = compiled()
    fit(resumed, callbacks.BackupAndRestore(backup))
    assert_same(resumed, whole)
    assert not gfile.exists(backup) and names(tmp_path / "here") == []


@pytest.mark.parametrize("missing", [0, 1])
def test_ranks_that_see_other_backups_are_told(missing, tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    with contextlib.suppress(KeyboardInterrupt):
        fit(compiled(), Die(), callbacks.BackupAndRestore(folders[0]))
    shutil.copytree(*folders)
    made = [callbacks.BackupAndRestore(folder) for folder in folders]
    found = two_ranks.run(2, lambda ranks: made[ranks.rank].find(ranks))
    assert found[0] == found[1] and found[0]["epoch"] == 2
    flipped(folders[missing] / "2-0.weights.h5")
    errors = []

    def find(ranks):
        with pytest.raises(ValueError, match="2-0.weights.h5 or") as caught:
            made[ranks.rank].find(ranks)
        errors.append(str(caught.value))

    two_ranks.run(2, find)
    assert sum(e.startswith(f"Rank {missing}: Backup") for e in errors) == 1
    shutil.rmtree(folders[missing])
    with pytest.raises(RuntimeError, match="rank 1 sees another backup in"):
        two_ranks.run(2, lambda ranks: made[ranks.rank].find(ranks))
