"""The runs of presets from several seeds: means, deviations, mean curves.

    python -m tools.seeds --presets=osawa_4096,osawa_8192 --dry_run
    python -m tools.seeds --presets=osawa_32768 --seeds=0,1,2 --ranks=1024 \\
        --runs_dir=runs -- --data_dir=/data

Each run is one of the trainer that has the preset (`trainers/configs/`), on
--ranks processes, with the flags after --, in <runs_dir>/<preset>/seed_<seed>.
What is finished there is not run again, and what was interrupted goes on. Then
<runs_dir>/seeds.md has a row for each preset, the mean and the deviation of its
last accuracies as Osawa et al. 2019, table 1, and seeds.png the mean curves and
the learning rates by epoch, as its figure 3. --dry_run prints the steps and the
predicted hours, without data.

Osawa's six batch sizes on ImageNet: not yet run. Of Osawa's table 1, the epochs
and iterations that --dry_run prints are those of the paper (8,192: 5,474, where
the paper has 5,434, a misprint).
"""

import json
import math
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence

from absl import flags

from tools import markdown_tables
from tools.sweep import budget
from trainers import command_line, configs, files, launch, run_directory

FLAGS = flags.FlagValues()  # Of their own, beside those of other programs.
_PRESETS = flags.DEFINE_list(
    "presets", [], "Of trainers/configs/.", flag_values=FLAGS
)
_SEEDS = flags.DEFINE_list(
    "seeds", ["0", "1", "2"], "Of each preset.", flag_values=FLAGS
)
_DIRECTORY = flags.DEFINE_string(
    "runs_dir", None, "Where the runs are kept.", flag_values=FLAGS
)
_RANKS = flags.DEFINE_integer(
    "ranks", 1, "Processes.", lower_bound=1, flag_values=FLAGS
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print what would be done.", flag_values=FLAGS
)
_SPEED = flags.DEFINE_float(
    "flops", budget.SPEED, "--dry_run: FLOP/s of products, for the hours.",
    1.0, flag_values=FLAGS,
)  # fmt: skip
_REPORT = flags.DEFINE_bool(
    "report_only", False, "Run nothing.", flag_values=FLAGS
)


def command(
    preset: str,
    seed: int,
    folder: pathlib.Path,
    ranks: int,
    more: Sequence[str],
) -> list[str] | None:
    """Returns the command of a run; None where it is finished.

    Args:
        preset: Its preset.
        seed: Its seed.
        folder: Its directory.
        ranks: How many processes.
        more: Flags of the trainer.
    """
    if finished(folder):
        return None
    trainer = configs.trainers_of_presets()[preset].name
    words = [sys.executable, "-m", f"trainers.{trainer}"]
    words = launch.on_ranks(words, ranks)
    words += [f"--preset={preset}", *more]
    words += [f"--seed={seed}", f"--model_dir={folder}"]
    if any(folder.glob(run_directory.CHECKPOINT)):
        return [*words, "--resume"]
    begun = (folder / run_directory.CONFIGURATION).exists()
    return [*words, "--overwrite"] if begun else words


def finished(folder: pathlib.Path) -> dict | None:
    """Returns the summary of a run that has ended, else None."""
    path = folder / run_directory.SUMMARY
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise SystemExit(
            f"{path}: is damaged ({error}); remove {folder}, and it is run "
            "again"
        ) from error


def records(folder: pathlib.Path) -> list[dict]:
    """Returns the log of a run."""
    lines = (folder / run_directory.RECORDS).read_text().splitlines()
    return [json.loads(line) for line in lines]


def table(logs: dict[str, list[list[dict]]]) -> str:
    """Returns means and deviations of the last records, in Markdown.

    Args:
        logs: From a preset to the logs of its runs.
    """
    head = ["preset", "runs", "epochs", "iterations"]
    head += ["accuracy, %", "loss", "hours"]
    rows = []
    for preset, runs in logs.items():
        if not runs:
            continue
        last = [log[-1] for log in runs]
        cells = [
            preset,
            str(len(runs)),
            f"{last[0]['epoch']:.4g}",
            f"{last[0]['step']:,}",
            spread([100 * r["val_accuracy"] for r in last]),
            spread([r["val_loss"] for r in last]),
            spread([r["seconds"] / 3600 for r in last]),
        ]
        rows.append(cells)
    return markdown_tables.table(head, rows)


def spread(values: list[float]) -> str:
    """Returns the mean, and the deviation where there are several values."""
    text = f"{statistics.mean(values):.4g}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.2g}"
    return text


def picture(logs: dict[str, list[list[dict]]]):
    """Returns mean accuracies and learning rates by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for preset, runs in logs.items():
        if not runs:
            continue
        at_once = list(zip(*runs))  # Records of one place in all logs.
        epochs = [of[0]["epoch"] for of in at_once]
        for panel, name in ((left, "val_accuracy"), (right, "learning_rate")):
            means = [statistics.mean(r[name] for r in of) for of in at_once]
            panel.plot(epochs, means, label=f"{preset}, {len(runs)} runs")
            panel.set(xlabel="epoch", ylabel=name)
    left.legend(fontsize="small")
    return figure


def plan(preset: str, more: Sequence[str], speed: float) -> dict:
    """Returns what a run of a preset takes; no data is read.

    The statistics and the inversions are taken as often as the schedules of
    their periods have them.
    """
    trainer = configs.trainers_of_presets()[preset]
    argv = [f"--preset={preset}", *more, "--dry_run"]
    run = command_line.parse(trainer, argv)
    cost, steps = budget.cost(run), run.steps.total
    size = run.config.batch_size
    flops = steps * cost.step(size, False, (1, 1))
    if run.config.optimizer.startswith("kfac"):
        factors, inverses = due(run)
        flops += factors * size * cost.factors + inverses * cost.inversion
        flops += steps * cost.preconditioning
    return {
        "batch size": size,
        "epochs": run.steps.epochs,
        "iterations": steps,
        "hours": flops / speed / 3600,
    }


def due(run: command_line.Run) -> tuple[int, int]:
    """Returns how many updates of a run have statistics, and inversions."""
    import tensorflow as tf

    from tfkfac.distributed.loss_scale import unwrapped
    from trainers import optimizers

    name, total = run.config.optimizer, run.steps.total
    made = unwrapped(
        optimizers.make(name, None, run.config, run.settings[name], run.steps)
    )
    counts = []
    for period in made.periods.values():
        number = period.number or period.most
        if number is not None:
            counts.append(math.ceil(total / number))
            continue
        t = count = 0
        while t < total:
            t += int(period._schedule(tf.constant(t, tf.int64)))
            count += 1
        counts.append(count)
    return counts[0], counts[1]


def plans(names: Sequence[str], seeds: int, more, speed: float) -> str:
    """Returns the plans of presets and their sum, in Markdown."""
    rows, hours = [], 0.0
    for name in names:
        found = plan(name, more, speed)
        hours += seeds * found["hours"]
        cells = [f"{x:,.4g}" if isinstance(x, float) else f"{x:,}"
                 for x in found.values()]  # fmt: skip
        rows.append([name, *cells, seeds])
    said = markdown_tables.table(["preset", *found, "runs"], rows)
    return f"{said}\n\n{hours:,.4g} hours at {speed:.3g} FLOP/s"


def chosen() -> tuple[list[str], list[int]]:
    """Returns the presets and the seeds; exits where one is wrong."""
    names, seeds = _PRESETS.value, _SEEDS.value
    known = configs.trainers_of_presets()
    if not names or not set(names) <= known.keys():
        raise SystemExit(
            f"--presets={','.join(names)}: give some of {', '.join(known)}"
        )
    if not seeds or not all(seed.isdecimal() for seed in seeds):
        raise SystemExit(f"--seeds={','.join(seeds)}: give whole numbers")
    return names, sorted({int(seed) for seed in seeds})


def parsed(argv: Sequence[str]) -> list[str]:
    """Returns what is no flag of the program; exits where one is wrong."""
    if "--help" in argv:
        print(__doc__, FLAGS.get_help(), sep="\n")
        raise SystemExit
    try:
        return FLAGS(argv)
    except flags.Error as error:
        raise SystemExit(str(error)) from error


def main(argv: list[str]) -> None:
    names, seeds = chosen()
    if _DRY_RUN.value:
        print(plans(names, len(seeds), argv[1:], _SPEED.value))
        return
    if _DIRECTORY.value is None:
        raise SystemExit("--runs_dir: give a directory")
    launch.require_package("matplotlib", "plot", "tools.seeds")
    directory = pathlib.Path(_DIRECTORY.value)
    logs: dict[str, list[list[dict]]] = {name: [] for name in names}
    for name in names:
        for seed in seeds:
            folder = directory / name / f"seed_{seed}"
            words = command(name, seed, folder, _RANKS.value, argv[1:])
            if words is not None and not _REPORT.value:
                subprocess.run(words, check=True)
            if finished(folder):
                logs[name].append(records(folder))
    if not any(logs.values()):
        raise SystemExit(f"--runs_dir={directory}: holds no finished run yet")
    text = table(logs)
    with files.whole(directory / "seeds.md") as partial:
        partial.write_text(text + "\n")
    files.write_figure(directory / "seeds.png", picture(logs), dpi=110)
    print(text)


if __name__ == "__main__":
    main(parsed(sys.argv))
