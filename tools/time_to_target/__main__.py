"""The command line: see the package."""

import pathlib

from absl import app, flags

from tools.time_to_target import report, runs, settings, tasks

_OUTPUT = flags.DEFINE_string(
    "output_dir", "runs/time_to_target", "Of runs.jsonl, table and pictures."
)
_TASKS = flags.DEFINE_list("tasks", list(tasks.TASKS), "Which to run.")
_OPTIMIZERS = flags.DEFINE_list(
    "optimizers", list(settings.SETTINGS), "Which to run."
)
_REPORT = flags.DEFINE_bool(
    "report_only", False, "Run nothing; write the report of what there is."
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    for flag, known in (
        (_TASKS, tasks.TASKS),
        (_OPTIMIZERS, settings.SETTINGS),
    ):
        unknown = set(flag.value) - set(known)
        if unknown:
            raise app.UsageError(
                f"--{flag.name}: {', '.join(sorted(unknown))} is none of "
                f"{', '.join(known)}"
            )
    directory = pathlib.Path(_OUTPUT.value)
    made = runs.Runs(directory)
    if not _REPORT.value:
        for task in _TASKS.value:
            made.measure(task, _OPTIMIZERS.value)
    table = report.rows(made.records)
    text = report.markdown(table)
    (directory / "table.md").write_text(text + "\n")
    report.draw(table, directory / "profile.png")
    report.draw_curves(made.records, directory / "curves.png")
    print(text)


if __name__ == "__main__":
    app.run(main)
