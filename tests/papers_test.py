"""docs/papers.md names all tables and figures, and commands that there are."""

import importlib.util
import json
import pathlib
import re

import pytest

from tools.sweep import figures, presets, store, trials
from tools.time_to_target import studies
from trainers import configs

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "batch_size"
PAGE = (ROOT / "docs" / "papers.md").read_text()
WORDS = " ".join(PAGE.split())
SHORT = {"S": "batch_size_study", "Q": "noisy_quadratic", "R": "seeds"}
COMMANDS = [
    " ".join(text.split())
    for text in re.findall(r"`((?:python -m|[SQR]) [^`]*)`", PAGE)
]


def numbers(kind, section):
    """Returns the numbers of the tables or figures that have a row."""
    of_paper = PAGE.split(f"## {section}")[1].split("\n## ")[0]
    found = set()
    for row in re.findall(rf"^\| {kind}s? ([^|]*) \|", of_paper, re.M):
        span = re.fullmatch(r"(\d+) to (\d+)", row)
        first, last = map(int, span.groups()) if span else (0, -1)
        found |= {*range(first, last + 1), *map(int, re.findall(r"\d+", row))}
    return found


def test_every_table_and_figure_has_a_row():
    assert numbers("table", "Osawa et al. 2019") == {1, 2, 3}
    assert numbers("figure", "Osawa et al. 2019") == {1, 2, 3, 4}
    assert numbers("figure", "Ma et al. 2019") == {*range(1, 11)}
    assert numbers("table", "Zhang et al. 2019") == {1}
    assert numbers("figure", "Zhang et al. 2019") == {*range(1, 16)}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_of_programs_with_such_flags(command):
    words = command.split()
    if words[0] in SHORT:
        program, words = f"tools.{SHORT[words[0]]}", words[1:]
    else:
        program, words = words[2], words[3:]
    found = importlib.util.find_spec(program)
    assert found, command
    # Its source, as the flags of several programs do not go together.
    source = pathlib.Path(found.origin).read_text()
    names = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source))
    known = {
        "preset": presets.PRESETS.keys() | configs.trainers_of_presets().keys(),
        "presets": configs.trainers_of_presets().keys(),
        "study": studies.STUDIES.keys(),
    }
    own = words[: words.index("--")] if "--" in words else words
    for word in own:
        name, _, value = word.removeprefix("--").partition("=")
        if names:
            assert name in names, command
        for item in value.split(",") if name in known else ():
            assert item in known[name], command
    assert len(COMMANDS) > 25


def test_presets_and_pictures_that_are_named():
    for name in (*presets.PRESETS, *configs.trainers_of_presets()):
        if not re.fullmatch("ma_(kfac|sgd|alexnet)", name):  # Of the studies.
            assert name in PAGE, name
    drawn = {*figures.FIGURES, "steps", "steps_accuracy", "steps_loss"}
    drawn |= {"seeds", "movement", "scaling"}
    assert set(re.findall(r"(\w+)\.png", PAGE)) <= drawn
    for path in re.findall(r"!\[[^]]*\]\(([^)]*)\)", PAGE):
        assert (ROOT / "docs" / path).exists(), path
    for path in re.findall(r"docs/[\w/]+(?:\.\w+)?", PAGE):
        assert (ROOT / path).exists(), path


def critical_batch_sizes():
    """Returns those of the fits in docs/batch_size/report.md, by optimizer."""
    report = (FOLDER / "report.md").read_text()
    fits = report.split("| critical batch size |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (\w+) \| [\d.]+ \| ([\d.]+) \|", fits, re.M)
    return {label: float(size) for label, size in rows}


def test_the_verdict_on_perfect_scaling_is_that_of_the_fits():
    """37.3 / 26.6 = 1.40 and 45.7 / 22.1 = 2.07: 1.4 to 2.1 times."""
    of = critical_batch_sizes()
    ours = of["kfac_without_momentum"], of["kfac"]
    theirs = of["sgd"], of["momentum"]
    text = f"{min(ours) / max(theirs):.1f} to {max(ours) / min(theirs):.1f}"
    assert text == "1.4 to 2.1"
    assert f"its critical batch size is {text} times" in WORDS


def test_what_the_study_told_anew_says():
    """Draws and trials, counted from trials.jsonl."""
    asked = trials.Study.from_config(store.config(FOLDER / "study.json"))
    path = FOLDER / "trials.jsonl"
    before = [json.loads(line) for line in path.read_text().splitlines()]
    now = store.read(path, asked)
    changed = [r for r, old in zip(now, before) if r["status"] != old["status"]]
    diverged = sum(old["status"] == "diverged" for old in before)
    of_kfac = sum(r["arm"] == "kfac" for r in changed)
    assert f"{len(changed)} trials of {diverged} had not diverged" in WORDS
    assert (len(changed), diverged, of_kfac) == (21, 118, 19)
    draws, over = [], []
    for size in asked.batch_sizes:
        of_cell = trials.of_cell(now, "kfac", size)
        draws.append(len(trials.counted(asked, of_cell)))
        over.append(len(trials.tuning(of_cell)) - draws[-1])
    assert f"{min(draws)} to {max(draws)}; {sum(over)} draws" in PAGE
    told = f"{', '.join(map(str, over[:-1]))} and {over[-1]} from 16 to 1,294"
    assert told in PAGE
