"""The command line: see the package."""

import pathlib

from absl import app, flags

from tools import json_lines
from tools.time_to_target import report, runs, studies

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


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    directory = pathlib.Path(_OUTPUT.value)
    try:
        study = studies.part(
            _STUDY.value,
            tasks=_TASKS.value,
            optimizers=_OPTIMIZERS.value,
            seeds=_SEEDS.value,
            steps=_STEPS.value,
            stay=_STAY.value,
        )
    except ValueError as error:
        raise app.UsageError(f"--{error}") from error
    try:
        if _REPORT.value:
            records = json_lines.read(directory / "runs.jsonl", runs.check)
        else:
            made = runs.Runs(directory)
    except ValueError as error:
        raise SystemExit(f"--output_dir: {error}") from error
    if not _REPORT.value:
        made.measure(study)
        records = made.records
    text = report.write(_STUDY.value, study, records, directory)
    if not text:
        raise SystemExit(f"{directory}: there is no run of {_STUDY.value} yet")
    print(text)


if __name__ == "__main__":
    app.run(main)
