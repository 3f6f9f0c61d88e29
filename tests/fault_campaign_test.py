"""The campaign of faults: what it counts, and the quickest part of it."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from tools.fault_campaign import faults, processes, report

ROOT = pathlib.Path(__file__).resolve().parent.parent
RETURNED = faults.Ending("returned")


def made(**more):
    return faults.Fault("group/name", lambda folder: None, **more)


@pytest.mark.parametrize(
    "fault, ending, expected",
    [
        (made(), RETURNED, faults.SURVIVED),
        (made(refused="x"), RETURNED, faults.LOST),
        (made(refused="x", either=True), RETURNED, faults.SURVIVED),
        (made(), faults.Ending("asserted", "x"), faults.LOST),
        (made(refused="x"), faults.Ending("asserted", "x"), faults.LOST),
        (made(), faults.Ending("raised", "x"), faults.UNCLEAR),
        (made(refused="x.*y"), faults.Ending("raised", "x\ny"), faults.REFUSED),
        (made(refused="x"), faults.Ending("raised", "y"), faults.UNCLEAR),
        (
            made(refused="x"),
            faults.Ending("raised", "long " * 200 + "x"),
            faults.UNCLEAR,
        ),
        (made(refused="x"), faults.Ending("died", "x"), faults.UNCLEAR),
        (made(refused="x"), faults.Ending("hung", "x"), faults.HUNG),
    ],
)
def test_outcomes(fault, ending, expected):
    assert faults.outcome(fault, ending) == expected


def refuse():
    raise SystemExit("--a: is wrong; leave it out")


def fail():
    raise ValueError("a=1: must be 2")


def lose():
    assert 1 == 2, "another weight"


@pytest.mark.parametrize(
    "function, kind, said",
    [
        (lambda: None, "returned", ""),
        (refuse, "raised", "--a: is wrong; leave it out"),
        (fail, "raised", "ValueError: a=1: must be 2"),
        (lose, "asserted", "another weight"),
        (lambda: os._exit(3), "died", "exit status 3"),
        (lambda: time.sleep(60), "hung", ""),
        (lambda: os.kill(os.getpid(), 15), "died", "exit status -15"),
    ],
)
def test_how_processes_end(function, kind, said, tmp_path):
    """And how a fault's process hands on the end of one that it started."""
    ending = processes.run(function, tmp_path / "output", seconds=2)
    assert ending.kind == kind and said in ending.said

    def of_fault():
        processes.demand(processes.run(function, tmp_path / "inner", 2))

    outer = processes.run(of_fault, tmp_path / "outer", seconds=20)
    assert outer.kind == ("raised" if kind == "died" else kind)
    assert said in outer.said


def test_a_session_ends_with_all_that_it_started(tmp_path):
    def start():
        child = os.fork()
        if child == 0:
            time.sleep(60)
        (tmp_path / "child").write_text(str(child))

    process = processes.Process(start, tmp_path / "output", leads=True)
    assert process.wait(20) == RETURNED
    child = int((tmp_path / "child").read_text())
    process.kill()
    for _ in range(100):
        state = pathlib.Path(f"/proc/{child}/stat")
        if not state.exists() or " Z " in state.read_text():
            return
        time.sleep(0.05)
    pytest.fail("it is alive")


def test_a_table_counts_by_group():
    records = [
        {"name": name, "expected": "survived", "outcome": outcome,
         "seconds": 1.0, "said": "a|b " * 99}
        for name, outcome in (("a/1", "survived"), ("a/2", "lost"),
                              ("b/1", "hung"))
    ]  # fmt: skip
    assert report.counts(records) == {
        "survived": 1, "refused clearly": 0, "lost": 1, "hung": 1, "unclear": 0
    }  # fmt: skip
    lines = report.table(records).splitlines()
    assert "| a | 1 | 0 | 1 | 0 | 0 |" in lines
    assert "| all | 1 | 0 | 1 | 1 | 0 |" in lines
    assert sum("**lost**" in line for line in lines) == 1
    assert all(len(line) < 260 for line in lines)


def record_of(said):
    return {"name": "a/1", "expected": "survived", "outcome": "survived",
            "seconds": 1.0, "said": said}  # fmt: skip


@pytest.mark.parametrize(
    "said, written",
    [
        ("\x1b[1mInput 0\x1b[0m is", "Input 0 is"),
        ("__wrapped__Sparse_x_y_/job", r"\_\_wrapped\_\_Sparse_x_y\_/job"),
        ("f(*args, **options)", r"f(\*args, \*\*options)"),
        ("<lambda> of $HOME", r"\<lambda> of \$HOME"),
        ("give `_init_` or `a*b`", "give `_init_` or `a*b`"),
    ],
)
def test_what_was_said_is_shown_as_it_is(said, written):
    *_, line = report.table([record_of(said)]).splitlines()
    assert line == f"| a/1 | survived | survived | 1.0 | {written} |"


def test_a_table_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "faults.md"
    report.write(path, [record_of("of the first")])
    old = path.read_text()
    assert old.startswith("# Faults and what came of them\n\n| Group |")
    path.write_text(old.replace("\n\n|", "\n\nWhat is | here.\n\n|", 1))
    report.write(path, [record_of("of the second")])
    expected = old.replace("first", "second")
    expected = expected.replace("\n\n|", "\n\nWhat is | here.\n\n|", 1)
    assert path.read_text() == expected


def campaign(*argv):
    return subprocess.run(
        [sys.executable, "-m", "tools.fault_campaign", *argv],
        capture_output=True, text=True, cwd=ROOT, timeout=900,
    )  # fmt: skip


# What is quick and of each kind; the whole campaign is a command of its own.
QUICK = (
    "data/NaN in a label",
    "data/NaN in a micro step",
    "data/NaN in every batch in eager mode",
    "data/nan in each inverse of the curvature",
    "data/labels of 77",
    "models/a frozen layer",
    "models/an optimizer for two models",
    "saved/backup: interrupted",
    "saved/backup: weights with a bit flipped at 0.5",
    "saved/a kill in the write of a backup",
    "saved/no space for a checkpoint",
    "files/configuration.json of 'null'",
    "files/checkpoint cut",
    "signals/SIGKILL in the write of a checkpoint",
    "system/model_dir in a file",
)


def test_the_quick_part_is_survived_or_refused(tmp_path):
    """The numbers out of range, and some faults of the other groups."""
    record, table = tmp_path / "record.jsonl", tmp_path / "table.md"
    done = campaign(
        f"--only=numbers,{','.join(QUICK)}", "--short", "--limit=180",
        f"--record={record}", f"--table={table}",
    )  # fmt: skip
    bad = [
        line
        for line in done.stdout.splitlines()
        if any(f": {outcome}" in line for outcome in faults.BAD)
    ]
    assert done.returncode == 0, (bad, done.stderr[-2000:])
    found = [json.loads(line) for line in record.read_text().splitlines()]
    assert len(found) > 100 and {r["outcome"] for r in found} == {
        faults.SURVIVED, faults.REFUSED
    }  # fmt: skip
    assert f"| all | {report.counts(found)['survived']} |" in table.read_text()


def test_names():
    done = campaign("--only=data,no such fault")
    assert done.returncode != 0
    assert "--only=no such fault: is no fault and no group" in done.stderr
