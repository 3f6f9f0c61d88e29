"""Optimizers of the trainers compared, each tuned, on real data.

    horovodrun -np 2 python -m tools.comparison --study=digits

Every optimizer is run with the settings of its grid, eight each, from one
seed; the setting that takes the fewest steps to the target (then the least
validation loss) is run from three other seeds. All runs are those of
`trainers.harness`: seconds are those of `fit`, the tracing of the first step
among them. A target counts when it is reached at the end of an epoch.

Under --output_dir: <study>.jsonl, a line for each run; a command that is given
again goes on from there. <study>.png and a table of medians, printed too.
"""

import dataclasses
import importlib
import json
import math
import pathlib
import statistics
import tempfile

from absl import app, flags

_STUDY = flags.DEFINE_string("study", "digits", "Of STUDIES.")
_OUTPUT = flags.DEFINE_string("output_dir", "docs/comparison", "Where.")

TUNING_SEED = 100
SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        trainer: Of which program, trainers.<trainer>.
        flags: Its command line.
        target: A validation metric and its value.
        grids: From a label to (optimizer, settings to choose from).
        metric: What the picture shows.
    """

    trainer: str
    flags: tuple[str, ...]
    target: tuple[str, float]
    grids: dict[str, tuple[str, list[dict]]]
    metric: str = "val_loss"


def _grid(**values) -> list[dict]:
    """Returns all combinations."""
    found = [{}]
    for name, of_name in values.items():
        found = [{**f, name: value} for f in found for value in of_name]
    return found


def _grids(kfac):
    rates = [0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05]
    return {
        "K-FAC": ("kfac", kfac),
        "SGD with momentum": (
            "momentum",
            _grid(learning_rate=[0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]),
        ),
        "Adam": ("adam", _grid(learning_rate=[0.0003, 0.0005, *rates[:-2]])),
        "Muon": ("muon", _grid(learning_rate=rates)),
    }


_KFAC = _grid(damping=[0.01, 0.1], kl_clip=[0.0001, 0.001], momentum=[0.5, 0.9])
_KFAC_OF_TEXT = _grid(
    damping=[0.001, 0.01], kl_clip=[0.001, 0.01], momentum=[0.5, 0.9]
)


def _stale(interval, curvature):
    settings = {
        "momentum": 0.5,
        "update_interval": interval,
        "norm_curvature": curvature,
    }
    if interval == "none":
        settings |= {"factor_update_period": 1, "inverse_update_period": 1}
    return "kfac", [settings]


def _refresh(**variants):
    """K-FAC as it comes, and with one thing changed."""
    usual = {"factor_update_period": 1, "inverse_update_period": 10}
    usual |= {"damping": 0.01, "kl_clip": 0.001, "momentum": 0.5}
    every = {"as it comes": {}, **variants}
    return {name: ("kfac", [usual | more]) for name, more in every.items()}


_STALE = {"factor_update_period": 10, "inverse_update_period": 100}
_REFRESH = {
    "staggered": {"refresh": "staggered"},
    "every step": {"inverse_update_period": 1},
    "periods 10 and 100": _STALE,
    "10 and 100, staggered": {**_STALE, "refresh": "staggered"},
}
_DIGITS = (
    "--dataset=digits",
    "--model=resnet8",
    "--batch_size=128",
    "--epochs=12",
    "--schedule=linear",
    "--validation",
)
_PYDOCS = (
    "--dataset=pydocs",
    "--epochs=3",
    "--evaluation_period=15",
    "--schedule=linear",
    "--validation",
)

STUDIES = {
    "digits": Study(
        "cifar",
        _DIGITS,
        ("val_loss", 0.2),
        _grids(_KFAC),
    ),
    "pydocs": Study("lm1b", _PYDOCS, ("val_loss", 5.5), _grids(_KFAC_OF_TEXT)),
    "digits_refresh": Study(
        "cifar",
        _DIGITS,
        ("val_loss", 0.2),
        _refresh(**{"with patches": {"patches": True}}, **_REFRESH),
    ),
    "pydocs_refresh": Study(
        "lm1b", _PYDOCS, ("val_loss", 5.7), _refresh(**_REFRESH)
    ),
    # Osawa et al. 2019, section 5.4, in small.
    "stale": Study(
        "cifar",
        (
            "--dataset=digits",
            "--model=resnet8_bn",
            "--batch_size=128",
            "--epochs=25",
            "--schedule=linear",
            "--validation",
        ),
        ("val_accuracy", 0.97),
        {
            "no staleness, full": _stale("none", "full"),
            "no staleness, diagonal": _stale("none", "diagonal"),
            "rule 20, full": _stale("growing", "full"),
            "rule 20, diagonal": _stale("growing", "diagonal"),
        },
        metric="val_accuracy",
    ),
}


def train(study: Study, optimizer: str, settings: dict, seed: int) -> dict:
    """Runs one training on all ranks; returns what is kept of it."""
    import keras

    from tfkfac.blocks import convolution
    from trainers import command_line, harness

    arguments = dict(settings)
    patches = arguments.pop("patches", False)
    convolution.ConvolutionBlock.without_patches = not patches
    trainer = importlib.import_module(f"trainers.{study.trainer}").TRAINER
    keras.utils.clear_session()
    with tempfile.TemporaryDirectory() as directory:
        given = {
            "optimizer": optimizer,
            "seed": seed,
            "model_dir": f"{directory}/run",
            "keep_checkpoints": 0,
            "verbose": 0,
            **arguments,
        }
        more = [f"--{key}={value}" for key, value in given.items()]
        run = command_line.parse(trainer, [*study.flags, *more])
        found = {"settings": settings, "seed": seed}
        try:
            result, _, log = harness.train(run, optimizer, run.model_dir)
        except SystemExit as error:
            if "diverged" not in str(error):
                raise
            return {**found, "log": []}
    kept = ("step", "loss", "val_loss", "val_accuracy", "seconds")
    log = [{key: record[key] for key in kept} for record in log]
    tests = {k: result[k] for k in ("test_loss", "test_accuracy")}
    return {**found, **tests, "log": log}


def reached(study: Study, run: dict) -> dict | None:
    """Returns the first record of the log that is as good as the target."""
    metric, value = study.target
    sign = 1 if metric.endswith("loss") else -1
    for record in run["log"]:
        if sign * record[metric] <= sign * value:
            return record
    return None


def score(study: Study, run: dict) -> tuple[float, float]:
    """Returns (steps to the target, last validation loss): less is better."""
    if not run["log"]:
        return math.inf, math.inf
    record = reached(study, run)
    steps = record["step"] if record else math.inf
    return steps, run["log"][-1]["val_loss"]


def compare(study: Study, path: pathlib.Path, is_first: bool) -> dict:
    """Runs what is missing in `path`; returns the last runs by label."""
    done = []
    if path.exists():
        done = [json.loads(line) for line in path.read_text().splitlines()]

    def made(label, optimizer, settings, seed):
        key = {"label": label, "settings": settings, "seed": seed}
        for run in done:
            if all(run[name] == value for name, value in key.items()):
                return run
        run = {"label": label, **train(study, optimizer, settings, seed)}
        if is_first:
            with path.open("a") as file:
                file.write(json.dumps(run) + "\n")
            print(label, settings, seed, score(study, run), flush=True)
        return run

    best = {}
    for label, (optimizer, grid) in study.grids.items():
        settings = grid[0]
        if len(grid) > 1:
            tried = [made(label, optimizer, s, TUNING_SEED) for s in grid]
            settings = min(tried, key=lambda r: score(study, r))["settings"]
        best[label] = [made(label, optimizer, settings, s) for s in SEEDS]
    return best


def table(study: Study, best: dict[str, list[dict]]) -> str:
    """Returns the seeds, and medians of those that did not diverge, in
    Markdown."""
    metric, value = study.target
    head = f"steps to {metric} {value} | seconds to it | steps in all | "
    head += "last val_loss | val_accuracy | test_accuracy | settings"
    lines = [f"| | {head} |", "|" + " --- |" * (head.count("|") + 2)]
    for label, runs in best.items():
        at = [reached(study, run) for run in runs]
        steps = [
            str(r["step"]) if r else "-" if run["log"] else "diverged"
            for r, run in zip(at, runs)
        ]
        seconds = [f"{r['seconds']:.0f}" if r else "-" for r in at]
        runs = [run for run in runs if run["log"]]
        if not runs:
            lines.append(f"| {label} | diverged |")
            continue
        last = [{**r["log"][-1], "test": r["test_accuracy"]} for r in runs]
        settings = ", ".join(f"{k} {v}" for k, v in runs[0]["settings"].items())
        cells = [label, ", ".join(steps), ", ".join(seconds)]
        for key in ("step", "val_loss", "val_accuracy", "test"):
            cells.append(f"{statistics.median(x[key] for x in last):.4g}")
        cells.append(settings)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(study: Study, best: dict[str, list[dict]], path: pathlib.Path) -> None:
    """Draws the metric against steps and seconds, a line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key in zip(panels, ("step", "seconds")):
        for i, (label, runs) in enumerate(best.items()):
            for run in runs:
                axes.plot(
                    [record[key] for record in run["log"]],
                    [record[study.metric] for record in run["log"]],
                    color=f"C{i}",
                    alpha=0.8,
                    linewidth=1.2,
                    label=label if run is runs[0] else None,
                )
        if study.metric == study.target[0]:
            axes.axhline(study.target[1], color="gray", linewidth=0.8)
        axes.set(xlabel=key, ylabel=study.metric)
        if study.metric == "val_loss":
            axes.set(yscale="log")
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
    panels[0].legend()
    figure.suptitle(" ".join(study.flags).replace("--", ""))
    figure.savefig(path, dpi=150)


def main(argv: list[str]) -> None:
    if len(argv) > 1 or _STUDY.value not in STUDIES:
        raise app.UsageError(f"--study is one of {', '.join(STUDIES)}")
    import tfkfac

    rank = tfkfac.init().rank
    study = STUDIES[_STUDY.value]
    output = pathlib.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{_STUDY.value}.jsonl"
    best = compare(study, path, rank == 0)
    if rank == 0:
        draw(study, best, path.with_suffix(".png"))
        text = table(study, best)
        path.with_suffix(".md").write_text(text + "\n")
        print(text)


if __name__ == "__main__":
    app.run(main)
