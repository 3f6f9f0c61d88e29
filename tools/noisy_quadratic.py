"""Steps to a target against batch size in the noisy quadratic model.

    python -m tools.noisy_quadratic --power=0.5 --batch_sizes=1,16,256,4096
    python -m tools.noisy_quadratic --optimizer=sgd,momentum --plot=steps.png
    python -m tools.noisy_quadratic --power=0,0.25,0.5,0.75 --json
    python -m tools.noisy_quadratic --figure=3a
    python -m tools.noisy_quadratic --compare_bins=100
    python -m tools.noisy_quadratic --noise_exponent=1 --batch_sizes=16,256

Zhang et al. 2019, section 3: a quadratic loss with noisy gradients, whose
expected risk has an exact closed form. The learning rate and the momentum or
averaging coefficient, or a schedule of 50 rates, are tuned for each batch size.
By default h_i = c_i = 1/i for 10,000 coordinates that start from N(0, I), and
the risk to reach is 0.01. --spectrum reads any other: a row for each
eigenvalue, of h, or h and c, or h, c and E[theta(0)^2]. --figure makes a
picture like one of the paper's: 1, 2, 3a, 3b, 3c, 4, 11, 13, 14 or 15. With
--noise_exponent the noise is c_i (L / L_0)^q, which falls with the expected
risk L (`tools/quadratic/falling.py`): exact too, but of at most 100,000 steps,
as each is made.

Steps to 0.01 (the bound d / 2N at batch size 1 is 500,000):

    batch size               1      256     65,536    1,048,576
    SGD              6,024,935   25,778      6,887        6,720
    momentum         6,021,666   21,850        179          150
    averaging          869,266    8,433      6,698        6,680
    schedule           775,712    8,933      6,709        6,677
    SGD, power 0.75  1,049,019    4,099         17           11

SGD takes 0.04 s for a batch size, momentum and schedules take 1 to 2 s, and the
84 points of the third command 3 s on 2 cores; 100 bins change the steps by at
most 0.12 %. With momenta above 0.999, which --max_momentum allows, momentum
saves 14 to 21 % of the steps with small batches too: its memory then spans a
good part of the run.
"""

import dataclasses
import json
import math
import pathlib

from absl import app, flags

from tools.quadratic import cartoons, figures, model, search, study, tuning
from trainers import files

_OPTIMIZER = flags.DEFINE_list(
    "optimizer", ["sgd"], f"One or more of {', '.join(study.OPTIMIZERS)}."
)
_POWER = flags.DEFINE_list(
    "power", None, "p of the preconditioner H^p, 0 to 1; one or more, or 0."
)
_BATCH_SIZES = flags.DEFINE_list(
    "batch_sizes", None, "By default the powers of 2 from 1 to 2^20."
)
_TARGET = flags.DEFINE_float("target", 0.01, "The expected risk to reach.")
_DIMENSION = flags.DEFINE_integer(
    "dimension", 10_000, "d of the 1/i spectrum.", lower_bound=1
)
_SPECTRUM = flags.DEFINE_string("spectrum", None, "A text or .npy file.")
_BINS = flags.DEFINE_integer(
    "bins",
    0,
    "Put the curvatures into so many bins; 0: into none.",
    lower_bound=0,
)
_COMPARE = flags.DEFINE_integer(
    "compare_bins",
    0,
    "Add what so many bins would give; 0: do not.",
    lower_bound=0,
)
_MAX_MOMENTUM = flags.DEFINE_float(
    "max_momentum",
    tuning.MAX_MOMENTUM,
    "The largest momentum to try.",
    lower_bound=0,
    upper_bound=1 - 1e-9,
)
_MAX_STEPS = flags.DEFINE_integer(
    "max_steps",
    study.MAX_STEPS,
    "Where a target counts as unreachable.",
    lower_bound=1,
)
_EXPONENT = flags.DEFINE_float(
    "noise_exponent",
    0.0,
    "The noise falls as this power of the risk; 0: it stays. Not with "
    "schedules and --figure.",
    lower_bound=0,
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON lines.")
_PLOT = flags.DEFINE_string("plot", None, "The picture to write.")
_FIGURE = flags.DEFINE_string(
    "figure", None, "Of the paper; by default written to figure_<name>.png."
)

CARTOONS = {
    "1": cartoons.figure_1,
    "2": cartoons.figure_2,
    "11": cartoons.figure_11,
}
FIGURES = {
    "3a": figures.figure_3a,
    "3b": figures.figure_3b,
    "3c": figures.figure_3c,
    "4": figures.figure_4,
    "13": figures.figure_13,
    "14": figures.figure_14,
    "15": figures.figure_15,
}
_COLUMNS = {
    "optimizer": "10",
    "power": "6g",
    "batch_size": "11",
    "steps": "11",
    "bound": "11.4g",
    "learning_rate": "14.4g",
    "momentum": "10.5g",
    "averaging": "10.8g",
    "final_learning_rate": "20.4g",
    "binned_steps": "13",
    "difference": "11.2%",
}


def numbers(flag, kind, least, most=math.inf) -> list | None:
    """Returns the values of a list flag; exits where one is wrong."""
    if flag.value == []:
        raise SystemExit(f"--{flag.name}: is empty; give one or more.")
    found = []
    for text in flag.value or []:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            name = "a whole number" if kind is int else "a number"
            span = (
                f"{least} to {most}" if most < math.inf else f"{least} or more"
            )
            raise SystemExit(f"--{flag.name}: {text!r} must be {name}, {span}.")
        found.append(value)
    return found or None


def spectrum() -> model.NoisyQuadratic:
    """Returns the model of the flags; exits where they are wrong."""
    if _SPECTRUM.value is None:
        return model.power_law(_DIMENSION.value)
    if flags.FLAGS["dimension"].present:
        raise SystemExit("--dimension: the file of --spectrum settles it.")
    try:
        return model.load(_SPECTRUM.value)
    except ValueError as error:
        raise SystemExit(f"--spectrum: {error}") from error


def picture() -> pathlib.Path | None:
    """Returns where to write a picture; exits where that cannot be."""
    path = _PLOT.value or (_FIGURE.value and f"figure_{_FIGURE.value}.png")
    if not path:
        return None
    path = pathlib.Path(path)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            "--plot and --figure need matplotlib, which is not installed: "
            "pip install 'tfkfac[plot]'"
        ) from error
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise SystemExit(f"--plot={path}: must end in .png, .pdf or .svg.")
    if not path.parent.is_dir():
        raise SystemExit(f"--plot={path}: there is no folder {path.parent}.")
    return path


def ask(questions: list[study.Question]) -> list[dict]:
    """Returns the answers and prints them as they come.

    Exits, before the work, where a target cannot be reached.
    """
    bins, rows, columns = _COMPARE.value, [], None
    if bins:
        coarse = questions[0].model.binned(bins)
        questions = [
            asked
            for question in questions
            for asked in (question, dataclasses.replace(question, model=coarse))
        ]
    try:
        answers = study.answers(questions)
        for row in answers:
            if bins:
                row["binned_steps"] = next(answers)["steps"]
                row["difference"] = row["binned_steps"] / row["steps"] - 1
            columns = print_row(row, columns)
            rows.append(row)
    except search.UnreachableError as error:
        raise SystemExit(f"--{error}") from error
    if bins and not _JSON.value:
        most = max(abs(row["difference"]) for row in rows)
        print(f"{bins} bins against none: {most:.2%} of the steps at most")
    return rows


def print_row(row: dict, last: list[str] | None) -> list[str]:
    """Prints a row, with a head where its columns are not the last ones."""
    if _JSON.value:
        print(json.dumps(row), flush=True)
        return []
    columns = [name for name in _COLUMNS if name in row]
    widths = [_COLUMNS[name].split(".")[0].rstrip("g") for name in columns]
    if columns != last:
        print(*(f"{name:>{width}}" for name, width in zip(columns, widths)))
    cells = (f"{row[name]:>{_COLUMNS[name]}}" for name in columns)
    print(*cells, flush=True)
    return columns


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    for name in _OPTIMIZER.value or [""]:
        if name not in study.OPTIMIZERS:
            known = ", ".join(study.OPTIMIZERS)
            raise SystemExit(f"--optimizer: {name!r} is none of {known}.")
    known = [*CARTOONS, *FIGURES]
    if _FIGURE.value is not None and _FIGURE.value not in known:
        raise SystemExit(
            f"--figure: {_FIGURE.value!r} is none of {', '.join(known)}."
        )
    if _FIGURE.value and flags.FLAGS["optimizer"].present:
        raise SystemExit("--optimizer: --figure has its own; leave one out.")
    if _EXPONENT.value and (_FIGURE.value or "schedule" in _OPTIMIZER.value):
        raise SystemExit(
            "--noise_exponent: --figure and the schedule have noise that "
            "stays; leave one out."
        )
    if _BINS.value and _COMPARE.value:
        raise SystemExit(
            "--compare_bins: compares with none; leave --bins out."
        )
    powers = numbers(_POWER, float, 0, 1)
    sizes = numbers(_BATCH_SIZES, int, 1)
    path = picture()
    if _FIGURE.value in CARTOONS:
        figure = CARTOONS[_FIGURE.value]()
    else:
        noisy = spectrum()
        noisy = noisy.binned(_BINS.value) if _BINS.value else noisy
        settings = figures.Settings(
            noisy, _TARGET.value, sizes, powers, _MAX_MOMENTUM.value,
            _MAX_STEPS.value, ask, _EXPONENT.value,
        )  # fmt: skip
        if _FIGURE.value:
            figure = FIGURES[_FIGURE.value](settings)
        else:
            rows = settings.rows(_OPTIMIZER.value, powers or (0.0,))
            figure = path and figures.steps(rows, "Steps to the target")
    if path:
        files.write_figure(path, figure, dpi=100)
        if not _JSON.value:
            print(f"Written to {path}")


if __name__ == "__main__":
    app.run(main)
