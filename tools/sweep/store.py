"""What a study leaves behind: study.json and trials.jsonl."""

import json
import pathlib
import statistics
from typing import Any

from tools import forms, json_lines
from tools.sweep import space
from tools.sweep.trials import (
    DIVERGED,
    FAILED,
    METRICS,
    MISSED,
    REACHED,
    TUNING_SEED,
    Study,
)
from trainers import files

_ROUNDING = 1e-5  # Of settings, which have six digits.
_FELL = 0.97  # Of the training loss at first: what older trials have learned.
_FORM = {
    "arm": str,
    "batch_size": forms.POSITIVE,
    "index": forms.COUNT,
    "settings": {str: forms.NUMBER},
    "seed": forms.COUNT,
    "status": {REACHED, MISSED, *FAILED},
    "steps": (forms.POSITIVE, type(None)),
    "curve": {str: [forms.NUMBER]},
}
_CURVE = {
    "step": [forms.COUNT, ...],
    **{name: [forms.NUMBER, ...] for name in METRICS},
}


_ALSO = {str: (forms.POSITIVE, type(None))}


def read(path: pathlib.Path, study: Study) -> list[dict]:
    """Returns the trials of a study, older ones `retold`.

    Raises:
        ValueError: A line is no trial of it, or the file cannot be read.
    """
    return retold(json_lines.read(path, Check(study)))


def is_older(record: dict) -> bool:
    """Returns whether a trial was not evaluated before its first step."""
    return (record["curve"].get("step") or [0])[0] != 0


def retold(records: list[dict]) -> list[dict]:
    """Returns trials with the status that they have by their training loss.

    Older trials were said to have diverged by their validation loss, too. They
    have not where the last training loss of their curve is 3 % or more below
    that with which training begins: such a trial was ended before the target,
    which it has missed. The loss before the first step is not known of them;
    the median of the first ones recorded, a few steps later, stands for it.
    """
    older = [r["curve"]["loss"] for r in records if is_older(r)]
    if not older:
        return records
    begin = statistics.median(losses[0] for losses in older)

    def has_learned(record):
        return record["curve"]["loss"][-1] <= _FELL * begin

    return [
        {**r, "status": MISSED}
        if r["status"] == DIVERGED and is_older(r) and has_learned(r)
        else r
        for r in records
    ]


class Check:
    """Raises ValueError where a value is no record of a trial of a study.

    Args:
        study: The study; it is called with one line after the other.
    """

    def __init__(self, study: Study):
        self._study = study
        self._known: set[tuple] = set()

    def __call__(self, record: Any) -> None:
        forms.check(record, _FORM)
        forms.check(record.get("seconds", 0), forms.AMOUNT, "'seconds'")
        forms.check(record.get("also", {}), _ALSO, "'also'")
        if record["status"] not in FAILED or record["curve"].get("step"):
            _check_curve(record["curve"])
        if (record["status"] == REACHED) != (record["steps"] is not None):
            raise ValueError(
                f"its status is {record['status']!r}, and its steps are "
                f"{record['steps']}"
            )
        self._check_of_study(record)
        key = [record[k] for k in ("arm", "batch_size", "index", "seed")]
        if tuple(key) in self._known:
            raise ValueError("it is there twice")
        self._known.add(tuple(key))

    def _check_of_study(self, record):
        """Raises ValueError where the study has no such trial."""
        study = self._study
        known = {
            "arm": study.arms,
            "batch_size": study.batch_sizes,
            "seed": (TUNING_SEED, *study.seeds),
        }
        for name, values in known.items():
            if record[name] not in values:
                raise ValueError(
                    f"{name} {record[name]!r} is none of study.json"
                )
        ranges, settings = study.space(record["arm"]), record["settings"]
        if settings.keys() != ranges.keys():
            raise ValueError(f"its settings are not {', '.join(ranges)}")
        for name, value in settings.items():
            low, high = ranges[name].low, ranges[name].high
            if not low * (1 - _ROUNDING) <= value <= high * (1 + _ROUNDING):
                raise ValueError(f"its {name} is not from {low:g} to {high:g}")


def _check_curve(curve):
    """Raises ValueError where a curve does not lead from step to step."""
    forms.check(curve, _CURVE, "'curve'")
    steps = curve["step"]
    times = curve.get("seconds", steps)  # Older trials have none.
    forms.check(times, [forms.AMOUNT], "'curve']['seconds'")
    if any(len(x) != len(steps) for x in (times, *map(curve.get, METRICS))):
        raise ValueError("its curve is not whole")
    if steps != sorted(set(steps)):
        raise ValueError("the steps of its curve are not in order")


class Store:
    """The directory of a study: study.json and trials.jsonl.

    Args:
        directory: Made where there is none.
        study: The study.

    Raises:
        ValueError: The directory holds another study, or trials of one that
            is not known; another command runs it; or a line is damaged.

    Attributes:
        records: All trials so far.
    """

    def __init__(self, directory: pathlib.Path, study: Study):
        settings, path = directory / "study.json", directory / "trials.jsonl"
        is_known = settings.exists()
        if is_known:
            differing(settings, study)
        elif path.exists() and path.stat().st_size:
            raise ValueError(
                f"{directory} holds {path.name} and no {settings.name}, which "
                "says of what study they are: put that back, or give another "
                "directory"
            )
        self._lines = json_lines.Lines(path, Check(study))
        files.write_json(settings, study.config())
        self.records = retold(self._lines.records.copy())

    def add(self, record: dict) -> None:
        """Writes a trial."""
        self._lines.add(record)
        self.records.append(record)


def differing(path: pathlib.Path, study: Study) -> None:
    """Raises ValueError where a study.json is of another study.

    Batch sizes and arms may be added, and seeds.
    """
    given = study.config()
    for name, value in config(path).items():
        same = given[name] == value
        if name in ("batch_sizes", "seeds"):
            same = set(value) <= set(given[name])
        if name in ("arms", "spaces"):
            same = value.items() <= given[name].items()
        if not same:
            raise ValueError(
                f"{path.parent} holds another study, with {name} {value}, not "
                f"{given[name]}; give another directory"
            )


def config(path: pathlib.Path) -> dict[str, Any]:
    """Returns what is in a study.json.

    Raises:
        ValueError: It is none.
    """
    try:
        found = json.loads(path.read_text())
        forms.check(found, _STUDY)
        for name, form in _NEWER.items():
            if name in found:
                forms.check(found[name], form, repr(name))
        space.read(found["spaces"], space.SEARCHES[found["search"]])
        made = Study.from_config(found)
        for label in made.arms:
            made.space(label)
        if not made.arms:
            raise ValueError("it has no arm")
    except OSError as error:
        reason = str(error.strerror)
    except KeyError as error:
        reason = f"there is no space of {error}"
    except (ValueError, TypeError, RecursionError) as error:
        reason = str(error)
    else:
        return found
    raise ValueError(
        f"{path}: is no description of a study ({reason}); give another "
        "directory, or remove it"
    )


_STUDY = {
    "trainer": {"cifar", "imagenet", "lm1b", "mnist"},
    "flags": [str],
    "arms": {str: [set(space.ARMS), [str]]},
    "batch_sizes": [forms.POSITIVE, ...],
    "spaces": {str: {str: [forms.NUMBER, forms.NUMBER, str]}},
    "search": set(space.SEARCHES),
    "trials": forms.POSITIVE,
    "seeds": [forms.COUNT],
    "metric": set(METRICS),
    "target": forms.NUMBER,
    "least_steps": forms.POSITIVE,
    "stop": bool,
    "evaluation_examples": forms.POSITIVE,
}
# Studies of before have none of them, and are read as with their defaults.
_NEWER = {
    "also": {str: forms.NUMBER},
    "split_examples": forms.POSITIVE,
    "most_steps": (forms.POSITIVE, type(None)),
    "micro_batch": (forms.POSITIVE, type(None)),
}
