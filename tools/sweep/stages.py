"""Steps and speed-up to the targets of a run's stages: Ma et al. 2019, IV-C."""

import numpy as np

from tools.sweep import analysis, panels
from tools.sweep.analysis import Result
from tools.sweep.trials import Study


def targets(study: Study, found: list[Result], metric: str) -> list[float]:
    """Returns a target for each stage of the selected run.

    That is the best one of the worst batch size and arm. There are none where
    trials end at the target, or the rate is not decayed in steps.
    """
    worst = analysis.worst(found, metric)
    if worst is None or study.stop:
        return []
    run = study.run(worst["arm"], worst["batch_size"])
    if run.config.schedule != "steps":
        return []
    ends = [run.steps.boundary(place) for place in run.config.decay_at]
    return analysis.stage_targets(worst["curve"], metric, ends)


def stages(study: Study, found: list[Result], train_size: int, metric: str):
    """Steps and speed-up to the targets: Ma et al. 2019, figures 3 and 4.

    None where there are no targets.
    """
    values = targets(study, found, metric)
    if not values:
        return None
    figure, rows = panels.grid(2, len(values), sharex=True)
    for target, (top, bottom) in zip(values, rows.T):
        for color, label, of_arm in panels.of_arms(study, found):
            at = analysis.fewest_steps(of_arm, metric, target)
            sizes, steps = np.array([*at.keys()]), np.array([*at.values()])
            top.plot(sizes, steps, "o-", color=color, label=label)
            if len(at):
                ideal = steps[0] * sizes[0] / sizes
                top.plot(sizes, ideal, ":", color=color, linewidth=0.8)
                bottom.plot(sizes, steps[0] / steps, "o-", color=color)
                bottom.plot(sizes, sizes / sizes[0], "k:", linewidth=0.8)
        top.set(title=f"{metric} {target:.3g}")
        panels.against_batches(study, top, bottom, yscale="log")
    rows[0][0].set(ylabel="steps")
    rows[1][0].set(ylabel="speed-up ratio")
    rows[0][0].legend(fontsize="small")
    return figure
