"""A study's table, what it comes to, and pictures."""

import pathlib

from tools.time_to_target import pictures, runs, summaries, tables
from tools.time_to_target.studies import Study
from trainers import files


def write(
    name: str,
    study: Study,
    records: list[dict],
    directory: pathlib.Path,
) -> str:
    """Writes a study's table and pictures; returns the text.

    Nothing is written, and the text is empty, where there is no run.
    """
    records = list(runs.latest(records).values())
    table = tables.rows(study, records)
    parts = [tables.markdown(study, table)] if table else []
    if name in summaries.SUMMARIES:
        parts += summaries.SUMMARIES[name](study, table, records)
    text = "\n\n".join(parts)
    if not text:
        return ""
    with files.whole(directory / f"{name}.md") as path:
        path.write_text(text + "\n")
    if table:
        with files.whole(directory / f"{name}_curves.png") as path:
            pictures.draw_curves(study, table, records, path)
    if table and study.steps is None:
        with files.whole(directory / f"{name}_profile.png") as path:
            pictures.draw_profile(study, table, path)
    return text
