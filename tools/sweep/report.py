"""The table, the warnings and the pictures of a study."""

import json
import pathlib
import statistics

from tools import forms, markdown_tables
from tools.sweep import (
    analysis,
    figures,
    prediction,
    robustness,
    store,
    trials,
)
from tools.sweep.analysis import Result
from tools.sweep.trials import Study
from trainers import files


def write(
    directory: pathlib.Path,
    spectra: pathlib.Path | None = None,
    also: dict[str, float] | None = None,
    noise_exponent: float = 0.0,
) -> None:
    """Writes report.md and the pictures beside trials.jsonl; prints the tables.

    Args:
        directory: Of the study.
        spectra: A spectra.json of tools.spectra, to predict the steps from.
        also: From metrics to targets to tell of, beside those of the study.
        noise_exponent: There the gradient noise falls as this power of the
            loss.

    Raises:
        SystemExit: There is no study in the directory, or no trial; or
            `spectra` cannot be read.
    """
    if not (directory / "study.json").exists():
        raise SystemExit(f"--study_dir={directory}: holds no study")
    try:
        study = Study.from_config(store.config(directory / "study.json"))
        records = store.read(directory / "trials.jsonl", study)
    except ValueError as error:
        raise SystemExit(f"--study_dir: {error}") from error
    if not records:
        raise SystemExit(f"--study_dir={directory}: holds no trial yet")
    label, batch_size = study.cells()[0]
    train_size = study.run(label, batch_size).steps.train_size
    found = analysis.results(study, records, train_size)
    parts = [table(found), fits(study, found), *warnings(study, found)]
    parts += older(records)
    drawn = {"steps": figures.steps(study, found, train_size)}
    if spectra is not None:
        predicted = predict(study, found, spectra, noise_exponent)
        parts.append(comparison(found, predicted))
        drawn["prediction"] = figures.prediction(study, found, predicted)
    for metric, target in {**study.also, **(also or {})}.items():
        asked = study.by(metric, target)
        if asked is not study:
            told = trials.told(study, records, asked)
            answers = analysis.results(asked, told, train_size)
            parts.append(f"The first trial at {metric} {target:g}:")
            parts += [table(answers), fits(asked, answers)]
            picture = figures.steps(asked, answers, train_size)
            drawn[f"steps_{metric}"] = picture
    if any(robustness.ends(r) for r in found):
        parts.append(robustness.table(found, train_size))
    for name, draw in figures.FIGURES.items():
        drawn[name] = draw(study, found, train_size)
    _save(directory, "\n\n".join(parts), drawn)


def _save(directory, text, drawn):
    """Writes the text, then the pictures that there are, and prints it."""
    with files.whole(directory / "report.md") as partial:
        partial.write_text(text + "\n")
    print(text)
    for name, figure in drawn.items():
        if figure is not None:
            files.write_figure(directory / f"{name}.png", figure, dpi=110)
    print(f"Written to {directory}/")


def older(records: list[dict]) -> list[str]:
    """Returns how many trials were measured by other rules, if any were."""
    count = sum(map(store.is_older, records))
    if not count:
        return []
    return [
        f"- {count} of {len(records)} trials are of before every trial was "
        "evaluated before its first step: their loss and accuracy are those of "
        "the batches since the evaluation before, with the weights as they were"
    ]


def table(found: list[Result]) -> str:
    """Returns the best settings and their steps in Markdown."""
    head = ["optimizer", "batch size", "steps to the target", "epochs"]
    head += ["seconds of training", "tried, diverged", "best settings"]
    rows = []
    for r in found:
        runs = [str(run["steps"] or "-") for run in r.runs]
        failed = r.failed(trials.DIVERGED) + r.failed(trials.CRASHED)
        settings = r.best["settings"].items() if r.best else ()
        cells = [
            r.label,
            str(r.batch_size),
            ", ".join(runs) or "-",
            f"{r.epochs:.3g}" if r.epochs else "-",
            f"{r.seconds:.3g}" if r.seconds else "-",
            f"{len(r.tried)}, {failed}",
            ", ".join(f"{key} {value:.3g}" for key, value in settings),
        ]
        rows.append(cells)
    return markdown_tables.table(head, rows)


def fits(study: Study, found: list[Result]) -> str:
    """Returns where the scaling of each arm ends, in Markdown."""
    head = ["optimizer", "fewest steps", "critical batch size"]
    head += ["error of the fit", "within 40 % of halving up to"]
    head += ["speed-up at the largest"]
    rows = []
    for label in study.arms:
        of_arm = [r for r in found if r.label == label and r.steps]
        if len(of_arm) < 3:
            continue
        sizes = [r.batch_size for r in of_arm]
        steps = [r.steps for r in of_arm]
        fit = analysis.scaling(sizes, steps)
        ratio = analysis.speedup(of_arm)[sizes[-1]]
        cells = [
            label,
            f"{fit.least_steps:.3g}",
            f"{fit.critical:.3g}",
            f"{fit.error:.1%}",
            str(analysis.perfect_up_to(sizes, steps)),
            f"{ratio:.3g} of {sizes[-1] / sizes[0]:.3g}",
        ]
        rows.append(cells)
    return markdown_tables.table(head, rows)


def predict(
    study: Study,
    found: list[Result],
    spectra: pathlib.Path,
    noise_exponent: float,
) -> dict[str, dict[int, int | None]]:
    """Returns `prediction.steps`; exits where it cannot be told."""
    first = [
        r["curve"]["loss"][0]
        for f in found
        for r in f.tried
        if r["curve"].get("loss")
    ]
    try:
        loss = statistics.median(first)
        model = prediction.measured(read_spectra(spectra, study.metric), loss)
    except ValueError as error:
        raise SystemExit(
            f"--spectra={spectra}: is no spectra.json of tools.spectra: {error}"
        ) from error
    return prediction.steps(model, found, study.target, noise_exponent)


def read_spectra(path: pathlib.Path, metric: str) -> dict:
    """Returns what is in a spectra.json; exits where it is none."""
    if not metric.endswith("loss"):
        raise SystemExit("--spectra: predicts steps to a loss, not an accuracy")
    try:
        found = json.loads(path.read_text())
        forms.check(found, _SPECTRA)
    except (OSError, ValueError, RecursionError) as error:
        raise SystemExit(
            f"--spectra={path}: is no spectra.json of tools.spectra: {error}"
        ) from error
    return found


_SPECTRA = {
    "layers": [{"layer": str, "positive": forms.COUNT}],
    "directions": [
        {
            "layer": str,
            "rank": forms.Number(1),
            "curvature": forms.NUMBER,
            "variance": forms.NUMBER,
        }
    ],
}


def comparison(
    found: list[Result], predicted: dict[str, dict[int, int | None]]
) -> str:
    """Returns the predicted beside the measured steps, in Markdown."""
    rows = []
    for r in found:
        if r.batch_size in predicted.get(r.label, ()):
            said = predicted[r.label][r.batch_size]
            rows.append([r.label, r.batch_size, r.steps or "-", said or "-"])
    head = ["optimizer", "batch size", "measured", "predicted"]
    return markdown_tables.table(head, rows)


def warnings(study: Study, found: list[Result]) -> list[str]:
    """Returns what to mend before the numbers are trusted."""
    lines = []
    for r in found:
        cell = f"{r.label}, batch size {r.batch_size}"
        wanted = study.trials if study.search == "quasi" else 1
        if len(r.sound) < wanted:
            lines.append(f"- {cell}: {len(r.sound)} trials did not fail")
        if r.border:
            names = ", ".join(r.border)
            lines.append(f"- {cell}: best at the border of the range: {names}")
        if r.best is None:
            lines.append(f"- {cell}: all trials failed")
        elif not r.best["steps"]:
            lines.append(f"- {cell}: no trial came to the target")
        elif r.steps is None:
            lines.append(f"- {cell}: not all seeds came to the target")
    return ["\n".join(lines)] if lines else []
