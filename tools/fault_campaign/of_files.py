"""Files of trainers that are damaged, cut, missing or of something else."""

import functools
import json
import os
import shutil
import zipfile
from pathlib import Path

from tools.fault_campaign import faults, processes, trained


def _resumed(folder, spoil, steps=3):
    """A run of which a file is spoilt goes on as if nothing were, or says."""
    run = trained.copy(folder, steps)
    spoil(run)
    before = _contents(run)
    try:
        trained.resume(run, folder)
    except faults.RefusedError:
        after = _contents(run)
        assert after == before, set(before.items()) ^ set(after.items())
        raise


def _contents(run: Path) -> dict[str, int]:
    return {
        str(p.relative_to(run)): hash(p.read_bytes())
        for p in run.rglob("*")
        if p.is_file() and "log" not in p.name
    }


def _rewritten(run, change, path=trained.MIDDLE, member="run.json"):
    """Changes a member of a checkpoint; None takes it out."""
    with zipfile.ZipFile(run / path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    members[member] = change(members[member])
    with zipfile.ZipFile(run / path, "w") as file:
        for name, content in members.items():
            if content is not None:
                file.writestr(name, content)


def _state(run, **changes):
    def change(content):
        state = {**json.loads(content), **changes}
        return json.dumps({k: v for k, v in state.items() if v != "gone"})

    _rewritten(run, change)


def _of_run(name, spoil, said, **more):
    faults.add(
        "files",
        name,
        functools.partial(_resumed, spoil=spoil),
        refused=said,
        **more,
    )


_CORRUPT = r"--resume: \S*00000003.keras (is corrupt|cannot be restored).*"
for _text in ("3", "null", "[]", "", "{", '{"settings": 3}', "\x00"):
    _of_run(
        f"configuration.json of {_text!r}",
        lambda run, text=_text: (run / "configuration.json").write_text(text),
        r"configuration.json.*(is corrupt.*give|of another configuration)",
        long=_text not in ("null", "{"),
    )
_of_run(
    "no configuration.json",
    lambda run: (run / "configuration.json").unlink(),
    "no configuration.json.*leave --resume out",
)
for _name, _changes in {
    "without step": {"step": "gone"},
    "without begun": {"begun": "gone"},
    "with step of text": {"step": "15"},
    "with step -5": {"step": -5},
    "with step 99": {"step": 99},
    "with records 3": {"records": 3},
    "with seconds of text": {"seconds": "x"},
    "with variables 99": {"variables": 99},
    "with ranks 0": {"ranks": 0},
}.items():
    _of_run(
        f"run.json {_name}",
        lambda run, changes=_changes: _state(run, **changes),
        _CORRUPT + "remove",
        long=True,
    )
for _member in ("run.json", "of_ranks.npz", "model.weights.h5", "config.json"):
    for _what, _change in {
        "missing": lambda c: None,
        "cut": lambda c: c[: len(c) // 2],
        "empty": lambda c: b"",
    }.items():
        # A resumed run makes its model by its flags, and reads no config.json.
        _of_run(
            f"checkpoint with {_member} {_what}",
            functools.partial(_rewritten, change=_change, member=_member),
            _CORRUPT,
            either=_member == "config.json",
            long=True,
        )
for _name, _place in {
    "the first header": 4,
    "the first method": 8,
    "the first name": 31,
    "the middle": 30_000,
    "the end": -20,
    "the list of members": -60,
    "a flag of the list": -250,
}.items():
    # What no reader looks at may be anything.
    _of_run(
        f"checkpoint with a bit flipped in {_name}",
        lambda run, place=_place: trained.flip(run / trained.MIDDLE, place),
        _CORRUPT + "|cannot be restored",
        either=True,
        long=_place != 8,
    )
_of_run(
    "checkpoint cut",
    lambda run: os.truncate(run / trained.MIDDLE, 5000),
    _CORRUPT + "remove",
)
_of_run(
    "checkpoint empty",
    lambda run: os.truncate(run / trained.MIDDLE, 0),
    _CORRUPT + "remove",
    long=True,
)
_of_run(
    "checkpoint that is text",
    lambda run: (run / trained.MIDDLE).write_text("text"),
    _CORRUPT + "remove",
    long=True,
)
_of_run(
    "no checkpoint",
    lambda run: shutil.rmtree(run / "checkpoints"),
    "has the log of a run and no checkpoint.*give --overwrite",
)


@faults.fault("files", long=True)
def the_last_checkpoint_is_damaged_and_removed(folder):
    """As the refusal says; the run goes on from the one before."""
    run = trained.copy(folder)
    os.truncate(run / trained.LAST, 5000)
    ending = trained.train(run, "--resume")
    assert (
        ending.kind == "raised" and "00000006.keras is corrupt" in ending.said
    )
    (run / trained.LAST).unlink()
    trained.resume(run, folder)


@faults.fault("files", long=True)
def the_log_is_damaged(folder):
    """It is written anew from the checkpoint."""
    run = trained.copy(folder, 3)
    (run / "log.jsonl").write_text("{")
    (run / "log.csv").unlink()
    trained.resume(run, folder)
    assert len((run / "log.jsonl").read_text().splitlines()) == 2


def _of_other(folder, flags):
    """A checkpoint of another run lies in the folder of one with K-FAC."""
    other = folder / "other"
    flags = (*trained.KFAC, "--steps=3", *flags)
    processes.demand(trained.train(other, *flags))
    run = trained.copy(folder, 3, trained.KFAC)
    shutil.copy(other / trained.MIDDLE, run / trained.MIDDLE)
    trained.resume(run, folder, *trained.KFAC)


for _flags in (
    ("--optimizer=adam",),
    ("--optimizer=sgd",),
    ("--inverter=eigen",),
    ("--mixed_precision=float16",),
    ("--gradient_accumulation_steps=2",),
    ("--model=small_cnn_bn",),
):
    faults.add(
        "files",
        f"checkpoint of a run with {' '.join(_flags)}",
        functools.partial(_of_other, flags=_flags),
        refused=r"--resume: .*00000003.keras .*another .*; (remove|give)",
        long=True,
    )
for _flag in (
    "--learning_rate=0.5",
    "--seed=3",
    "--optimizer=adam",
    "--batch_size=120",
):
    faults.add(
        "files",
        f"resumed with {_flag}",
        functools.partial(
            lambda folder, flag: processes.demand(
                trained.train(trained.copy(folder, 3), "--resume", flag)
            ),
            flag=_flag,
        ),
        refused="another configuration.*(now and was).*give the same flags",
        long=_flag != "--seed=3",
    )


def _overwritten(folder, marker):
    """What a run did not write stays, whatever its name."""
    run = trained.copy(folder) if marker else folder / "run"
    mine = (
        "notes.txt",
        "compare_notes.txt",
        "compare_mine/log.csv",
        "tensorboard/mine/events.out.tfevents.1",
        "spectra/mine",
        "checkpoints/mine",
    )
    for name in mine:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("kept")
    try:
        processes.demand(trained.train(run, "--overwrite"))
        trained.assert_whole(run, folder)
    finally:
        assert all((run / name).read_text() == "kept" for name in mine)


faults.add(
    "files",
    "overwrite beside files of others",
    functools.partial(_overwritten, marker=True),
    long=True,
)
faults.add(
    "files",
    "overwrite where no run was",
    functools.partial(_overwritten, marker=False),
)


@faults.fault(
    "files", refused="is a file where .* a folder: move it away", long=True
)
def a_file_in_the_place_of_a_folder(folder):
    (folder / "run").mkdir()
    (folder / "run" / "checkpoints").touch()
    processes.demand(trained.train(folder / "run"))


@faults.fault("files", long=True)
def checkpoints_lie_elsewhere_and_are_overwritten(folder):
    run = trained.copy(folder)
    shutil.move(run / "checkpoints", folder / "there")
    (run / "checkpoints").symlink_to(folder / "there")
    processes.demand(trained.train(run, "--overwrite"))
    trained.assert_whole(run, folder)


@faults.fault(
    "files", refused="partial_.* is a folder.*move it away", long=True
)
def a_folder_in_the_place_of_a_file_to_write(folder):
    run = trained.copy(folder, 3)
    (run / "partial_log.jsonl").mkdir()
    try:
        trained.resume(run, folder)
    finally:
        assert (run / trained.MIDDLE).exists()
