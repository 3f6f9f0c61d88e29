"""The command line: see the package."""

import dataclasses
import pathlib

from absl import app, flags

from tools import json_lines
from tools.time_to_target import (
    pictures,
    report,
    runs,
    studies,
    summaries,
    tasks,
)

_OUTPUT = flags.DEFINE_string(
    "output_dir", "runs/time_to_target", "Of runs.jsonl, tables and pictures."
)
_STUDY = flags.DEFINE_enum(
    "study", "peers", list(studies.STUDIES), "What is asked."
)
_TASKS = flags.DEFINE_list("tasks", None, "Which to run; those of the study.")
_OPTIMIZERS = flags.DEFINE_list(
    "optimizers", None, "Which of the study's arms to run; all."
)
_SEEDS = flags.DEFINE_list("seeds", None, "In place of the study's.")
_STEPS = flags.DEFINE_integer(
    "steps",
    None,
    "Of each run, where a study has a number of them, in place of its own.",
    lower_bound=1,
)
_STAY = flags.DEFINE_bool(
    "stay",
    False,
    "Go on after the target, over as many steps again: the worst loss there.",
)
_REPORT = flags.DEFINE_bool(
    "report_only", False, "Run nothing; write the report of what there is."
)


def chosen() -> studies.Study:
    """Returns the study of the flags.

    Raises:
        UsageError: A flag names what there is not.
    """
    study = studies.STUDIES[_STUDY.value]
    if _TASKS.value is not None:
        _known(_TASKS, study.steps or tasks.TASKS)
        study = dataclasses.replace(study, tasks=tuple(_TASKS.value))
    if _OPTIMIZERS.value is not None:
        _known(_OPTIMIZERS, study.arms)
        arms = {k: a for k, a in study.arms.items() if k in _OPTIMIZERS.value}
        for label, arm in arms.items():
            if arm.beside is not None and arm.beside not in arms:
                raise app.UsageError(
                    f"--optimizers: {label} is measured by {arm.beside}; name "
                    "that, too"
                )
        study = dataclasses.replace(study, arms=arms)
    if _SEEDS.value is not None:
        study = dataclasses.replace(study, seeds=_seeds())
    if study.steps is None and _STEPS.value is not None:
        raise app.UsageError(f"--steps: {_STUDY.value} runs to targets")
    if study.steps is not None and _STAY.value:
        raise app.UsageError(f"--stay: {_STUDY.value} has no targets")
    if _STEPS.value is not None:
        steps = dict.fromkeys(study.steps, _STEPS.value)
        study = dataclasses.replace(study, steps=steps)
    return dataclasses.replace(study, stay=_STAY.value)


def _known(flag, known) -> None:
    unknown = set(flag.value) - set(known)
    if unknown or not flag.value:
        raise app.UsageError(
            f"--{flag.name}: {', '.join(sorted(unknown)) or 'nothing'} is none "
            f"of {', '.join(known)}"
        )


def _seeds() -> tuple[int, ...]:
    try:
        found = tuple(int(text) for text in _SEEDS.value)
    except ValueError:
        found = (-1,)
    if any(seed < 0 or seed == runs.TUNING_SEED for seed in found):
        raise app.UsageError(
            f"--seeds={','.join(_SEEDS.value)}: give whole numbers from 0 on, "
            f"not {runs.TUNING_SEED}, the search's"
        )
    return found


def write(
    name: str,
    study: studies.Study,
    records: list[dict],
    directory: pathlib.Path,
) -> str:
    """Writes a study's table and pictures; returns the text.

    Nothing is written, and the text is empty, where there is no run.
    """
    records = list(runs.latest(records).values())
    table = report.rows(study, records)
    parts = [report.markdown(study, table)] if table else []
    if name in summaries.SUMMARIES:
        parts += summaries.SUMMARIES[name](study, table, records)
    text = "\n\n".join(parts)
    if not text:
        return ""
    (directory / f"{name}.md").write_text(text + "\n")
    if table:
        path = directory / f"{name}_curves.png"
        pictures.draw_curves(study, table, records, path)
    if table and study.steps is None:
        pictures.draw_profile(study, table, directory / f"{name}_profile.png")
    return text


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    directory, study = pathlib.Path(_OUTPUT.value), chosen()
    try:
        if _REPORT.value:
            records = json_lines.read(directory / "runs.jsonl")
        else:
            made = runs.Runs(directory)
    except ValueError as error:
        raise SystemExit(f"--output_dir: {error}") from error
    if not _REPORT.value:
        made.measure(study)
        records = made.records
    text = write(_STUDY.value, study, records, directory)
    if not text:
        raise SystemExit(f"{directory}: there is no run of {_STUDY.value} yet")
    print(text)


if __name__ == "__main__":
    app.run(main)
