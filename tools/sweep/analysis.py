"""What the trials of a study come to."""

import dataclasses
import math
import statistics

import numpy as np

from tools.sweep import curves, space, trials
from tools.sweep.trials import Study

STAGE = 0.8  # Of the way through a stage: Ma et al. 2019, IV-C.


@dataclasses.dataclass(frozen=True)
class Result:
    """What a cell comes to.

    Attributes:
        label, batch_size: The cell.
        tried: The trials of its search, within its budget.
        best: The best of them; None if all failed.
        runs: Those of the best setting from the seeds; where the study asks
            for none, the best trial itself.
        steps: To the target, the median of `runs`; None if one of them, or the
            best trial, has not come to it.
        epochs: The same in passes over the data.
        seconds: The same in seconds of training, evaluations left out; None
            where they were not measured.
        border: What of the best setting lies at the border of its range.
        momentum: Where it is not tuned.
    """

    label: str
    batch_size: int
    tried: list[dict]
    best: dict | None
    runs: list[dict]
    steps: float | None
    epochs: float | None
    seconds: float | None
    border: list[str]
    momentum: float = 0.0

    @property
    def learning_rate(self) -> float | None:
        """The effective one, alpha / (1 - mu), of the best setting.

        Of momentum as a sum (Zhang et al. 2019, 3.2); Adam's is a mean.
        """
        if self.best is None:
            return None
        settings = self.best["settings"]
        mu = settings.get("momentum", self.momentum)
        return settings["learning_rate"] / (1 - mu)

    @property
    def sound(self) -> list[dict]:
        """The trials of the search that did not fail."""
        return trials.sound(self.tried)

    def failed(self, status: str) -> int:
        """Returns how many trials ended so."""
        return sum(r["status"] == status for r in self.tried)


def results(study: Study, records: list[dict], train_size: int) -> list[Result]:
    """Returns the results of all cells that have trials."""
    found = []
    for label in study.arms:
        run = study.run(label, study.batch_sizes[0])
        momentum = run.settings[run.config.optimizer].get("momentum", 0.0)
        for batch_size in study.batch_sizes:
            of_cell = trials.of_cell(records, label, batch_size)
            if of_cell:
                found.append(
                    _result(
                        study, label, batch_size, of_cell, train_size, momentum
                    )
                )
    return found


def _result(study, label, batch_size, records, train_size, momentum):
    best = trials.best(study, records)
    runs = trials.finals(records, best) if best else []
    if best and not study.seeds:
        runs = [best]
    steps = None
    if runs and all(r["steps"] for r in [best, *runs]):
        steps = statistics.median(r["steps"] for r in runs)
    border = (
        space.at_border(study.space(label), best["settings"]) if best else []
    )
    return Result(
        label=label,
        batch_size=batch_size,
        tried=trials.counted(study, records),
        best=best,
        runs=runs,
        steps=steps,
        epochs=steps and steps * batch_size / train_size,
        seconds=steps and _seconds(runs),
        border=border,
        momentum=momentum,
    )


def _seconds(runs):
    """Returns the median of the seconds to the target, None if not known."""
    found = []
    for record in runs:
        curve = record["curve"]
        if record["steps"] not in curve["step"] or "seconds" not in curve:
            return None
        found.append(curve["seconds"][curve["step"].index(record["steps"])])
    return statistics.median(found)


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The fit S(B) = S_min (1 + B_crit / B).

    Attributes:
        least_steps: S_min.
        critical: B_crit, the batch size at which twice S_min is taken; it is 0
            where steps do not fall, infinite where they fall in proportion.
        error: The root of the mean squared error of log S.
    """

    least_steps: float
    critical: float
    error: float


def scaling(batch_sizes: list[int], steps: list[float]) -> Scaling:
    """Fits log S by least squares.

    S_min and S_min B_crit are the fewest steps and the fewest examples
    (McCandlish et al. 2018). It takes two batch sizes or more.
    """
    from scipy.optimize import least_squares

    size, log_steps = np.asarray(batch_sizes, float), np.log(steps)

    def residual(x):
        return np.logaddexp(x[0], x[1] - np.log(size)) - log_steps

    start = [log_steps.min(), (log_steps + np.log(size)).min()]
    fit = least_squares(residual, start, bounds=([-20, -20], [40, 40]))
    least, examples = np.exp(fit.x)
    return Scaling(
        least_steps=float(least),
        critical=float(examples / least),
        error=float(np.sqrt(np.mean(fit.fun**2))),
    )


def speedup(found: list[Result]) -> dict[int, float]:
    """Returns s(m; m0) = k(m0) / k(m) by m, m0 the least of the batch sizes.

    Ma et al. 2019, III-C. The results are those of one arm.
    """
    steps = {r.batch_size: r.steps for r in found if r.steps}
    if not steps:
        return {}
    first = steps[min(steps)]
    return {size: first / k for size, k in steps.items()}


def fewest_steps(
    found: list[Result], metric: str, value: float
) -> dict[int, int]:
    """Returns the fewest steps to a value among the trials, by batch size."""
    at = {}
    for result in found:
        every = [
            curves.steps_to(r["curve"], metric, value) for r in result.sound
        ]
        if any(every):
            at[result.batch_size] = min(s for s in every if s)
    return at


def stage_targets(
    curve: dict, metric: str, boundaries: list[int]
) -> list[float]:
    """Returns a target for each stage of a run, 80 % of the way through it.

    Of the values directly before and after the stage: Ma et al. 2019, IV-C.
    The run is that of the worst batch size and arm.

    Args:
        curve: Of the run.
        metric: Of the curve.
        boundaries: The steps at which a stage ends and the next one begins.
    """
    steps, values = np.asarray(curve["step"]), np.asarray(curve[metric])
    ends = [steps[0], *boundaries, steps[-1]]
    at = values[np.searchsorted(steps, ends, side="right") - 1]
    return [
        float(before + STAGE * (after - before))
        for before, after in zip(at, at[1:])
    ]


def worst(found: list[Result], metric: str) -> dict | None:
    """Returns the best trial of the cell whose best one is worst."""
    bests = [trial for r in found if (trial := best_by(r, metric))]
    sign = curves.sign(metric)
    return max(
        bests,
        key=lambda r: sign * curves.best_value(r["curve"], metric),
        default=None,
    )


def best_by(result: Result, metric: str) -> dict | None:
    """Returns the trial of a cell that achieves the best value of a metric.

    At any step of it (Ma et al. 2019, figures 2 and 9, appendix A: maximal
    accuracy, minimal loss); None where all failed.
    """
    sign = curves.sign(metric)
    return min(
        result.sound,
        key=lambda r: sign * curves.best_value(r["curve"], metric),
        default=None,
    )


def best_value(result: Result, metric: str) -> float | None:
    """Returns the best value of a metric that a trial of a cell achieves."""
    found = best_by(result, metric)
    return found and curves.best_value(found["curve"], metric)


def values_at(
    result: Result, metric: str, step: float = math.inf
) -> list[float]:
    """Returns a metric of all configurations of a cell at a step.

    That is the last value measured up to it, of those that failed, too: what
    they came to. Trials of which nothing was measured by then are left out.
    """
    found = []
    for record in result.tried:
        steps = record["curve"].get("step", [])
        past = sum(s <= step for s in steps)
        if past:
            found.append(record["curve"][metric][past - 1])
    return found


def perfect_up_to(batch_sizes: list[int], steps: list[float]) -> int:
    """Returns the largest batch size up to which doubling it saves at least
    40 % of the steps on the way; perfect scaling saves half."""
    last = batch_sizes[0]
    pairs = zip(batch_sizes, batch_sizes[1:], steps, steps[1:])
    for size, larger, before, after in pairs:
        doublings = math.log2(larger / size)
        if after > before * 0.6**doublings:
            break
        last = larger
    return last
