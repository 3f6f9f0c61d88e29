"""How many trials and steps a study takes, and how long that would be."""

import dataclasses
import math

from tools import markdown_tables
from tools.sweep import trials
from tools.sweep.trials import Study
from trainers.command_line import Run

# FLOPs of products per second: half the peak of a V100, as the prediction of
# tools.scaling_benchmark has it.
SPEED = 7.8e12
_BATCH = 32  # The examples that a plan is made for; it is scaled from there.


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOPs of products and convolutions, by `tfkfac.plan`.

    Attributes:
        gradient: Of forward and backward pass, for each example.
        factors: Of K-FAC's statistics, for each example.
        inversion: Of its inversions.
        preconditioning: Of U.
    """

    gradient: float
    factors: float
    inversion: float
    preconditioning: float

    def step(
        self, batch_size: int, is_kfac: bool, periods: tuple[int, int]
    ) -> float:
        """Returns the FLOPs of the mean step.

        Args:
            batch_size: Its examples.
            is_kfac: Whether there is anything but the gradient.
            periods: Of factors and inverses.
        """
        of_gradient = batch_size * self.gradient
        if not is_kfac:
            return of_gradient
        factors = batch_size * self.factors / periods[0]
        inversion = self.inversion / periods[1]
        return of_gradient + factors + inversion + self.preconditioning


@dataclasses.dataclass(frozen=True)
class Row:
    """What a cell takes where no trial fails, and none ends at a target.

    Attributes:
        label, batch_size: The cell.
        trials: How many.
        steps: Of each.
        evaluations: Of each.
        hours: Of all.
    """

    label: str
    batch_size: int
    trials: int
    steps: int
    evaluations: int
    hours: float


def cost(run: Run) -> Cost:
    """Returns what the model of a run takes, with K-FAC's settings of it."""
    settings = run.settings[run.config.optimizer]
    is_exact = settings.get("inverter") == "eigen"
    options = {
        "fisher": settings.get("fisher", "sampled"),
        "inverter": "eigen" if is_exact else "cholesky",
        "norm_curvature": settings.get("norm_curvature", "diagonal"),
    }
    from trainers import train

    key = (run.config.model, train.input_shape(run), *options.values())
    if key not in _COSTS:
        _COSTS[key] = _cost(run, options)
    return _COSTS[key]


_COSTS: dict[tuple, Cost] = {}  # To count the FLOPs of a model takes seconds.


def _cost(run, options):
    import tensorflow as tf

    import tfkfac
    from trainers import train

    plan = tfkfac.plan(
        train.make_model(run),
        batch_size=_BATCH,
        **options,
        inputs=tf.TensorSpec(
            [None, *train.input_shape(run)],
            "int32" if run.trainer.text else "float32",
        ),
    )
    gradient, plain, factors, both = (
        plan.step(kind).flops
        for kind in ("gradient", "plain", "factors", "factors and inverses")
    )
    return Cost(
        gradient=gradient / _BATCH,
        factors=(factors - plain) / _BATCH,
        inversion=both - factors,
        preconditioning=plain - gradient,
    )


def rows(study: Study, speed: float = SPEED) -> list[Row]:
    """Returns a row for each cell, by arm; no data is read."""
    found = []
    arms = list(study.arms)
    for label, size in sorted(
        study.cells(), key=lambda cell: (arms.index(cell[0]), cell[1])
    ):
        run = study.run(label, size, dry=True)
        settings = run.settings[run.config.optimizer]
        is_kfac = run.config.optimizer.startswith("kfac")
        periods = tuple(
            int(settings.get(f"{name}_update_period", 1))
            for name in ("factor", "inverse")
        )
        of_model = cost(run)
        step = of_model.step(size, is_kfac, periods)
        evaluations, examples = _evaluations(study, run)
        forward = evaluations * examples * of_model.gradient / 3
        count = _trials(study, label)
        steps = study.total(run)
        hours = count * (steps * step + forward) / speed / 3600
        found.append(Row(label, size, count, steps, evaluations, hours))
    return found


def _trials(study, label):
    """Returns those of the search, if none fails, and of the seeds."""
    tried = study.trials
    if study.search == "grid":
        tried **= len(study.space(label))
    return tried + len(study.seeds)


def _evaluations(study, run):
    """Returns how many there are, and the examples of each."""
    period = max(1, round(study.evaluation_examples / run.config.batch_size))
    return 1 + math.ceil(study.total(run) / period), 2 * study.split_examples


def table(study: Study, speed: float = SPEED) -> str:
    """Returns the rows and their sum in Markdown."""
    head = ["optimizer", "batch size", "trials", "steps of each"]
    head += ["evaluations of each", "hours"]
    every = rows(study, speed)
    cells = [
        [r.label, r.batch_size, f"{r.trials:,}", f"{r.steps:,}"]
        + [f"{r.evaluations:,}", f"{r.hours:,.3g}"]
        for r in every
    ]
    count = sum(r.trials for r in every)
    steps = sum(r.trials * r.steps for r in every)
    hours = sum(r.hours for r in every)
    until = "" if not study.stop else ", if none ends at its target"
    return markdown_tables.table(head, cells) + (
        f"\n\n{count:,} trials, {steps:,} steps, {hours:,.4g} hours at "
        f"{speed:.3g} FLOP/s{until}; seed of the search {trials.TUNING_SEED}"
    )
