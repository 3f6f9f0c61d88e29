"""What a study leaves behind: study.json and trials.jsonl."""

import json
import pathlib
from typing import Any

from tools import forms, json_lines
from tools.sweep.trials import FAILED, METRICS, MISSED, REACHED, Study
from trainers import output

_FORM = {
    "arm": str,
    "batch_size": int,
    "index": int,
    "settings": {"learning_rate": forms.NUMBER, str: forms.NUMBER},
    "seed": int,
    "status": str,
    "steps": (int, type(None)),
    "curve": {str: [forms.NUMBER]},
}


def check(record: Any) -> None:
    """Raises ValueError where a value is no record of a trial."""
    forms.check(record, _FORM)
    forms.check(record.get("seconds", 0), forms.NUMBER, "'seconds'")
    if record["status"] not in (REACHED, MISSED, *FAILED):
        raise ValueError(f"status {record['status']!r} is none of a trial's")
    if record["status"] not in FAILED:
        curve = record["curve"]
        lengths = {len(curve.get(name, ())) for name in ("step", *METRICS)}
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError("its curve is not whole")


class Store:
    """The directory of a study: study.json and trials.jsonl.

    Args:
        directory: Made where there is none.
        study: The study.

    Raises:
        ValueError: The directory holds another study, another command runs
            it, or a line is damaged.

    Attributes:
        records: All trials so far.
    """

    def __init__(self, directory: pathlib.Path, study: Study):
        self._lines = json_lines.Lines(directory / "trials.jsonl", check)
        settings = directory / "study.json"
        if settings.exists():
            differing(settings, study)
        output.write_json(settings, study.config())
        self.records = self._lines.records

    def add(self, record: dict) -> None:
        """Writes a trial."""
        self._lines.add(record)


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
        made = Study.from_config(found)
        for label in made.arms:
            made.space(label)
    except OSError as error:
        reason = str(error.strerror)
    except KeyError as error:
        reason = f"there is no arm {error}"
    except (ValueError, TypeError, RecursionError) as error:
        reason = str(error)
    else:
        return found
    raise ValueError(
        f"{path}: is no description of a study ({reason}); give another "
        "directory, or remove it"
    )


_STUDY = {
    "trainer": str,
    "flags": [str],
    "arms": {str: [str, [str]]},
    "batch_sizes": [int],
    "spaces": {str: {str: [forms.NUMBER, forms.NUMBER, str]}},
    "search": str,
    "trials": int,
    "seeds": [int],
    "metric": str,
    "target": forms.NUMBER,
    "least_steps": int,
    "stop": bool,
    "evaluation_examples": int,
}
