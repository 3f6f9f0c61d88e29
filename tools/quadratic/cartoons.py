"""Pictures of closed forms: figures 1, 2 and 11 of Zhang et al. 2019."""

import numpy as np

from tools.quadratic import bounds
from tools.quadratic.figures import finish, new
from tools.quadratic.model import from_columns

_CURVATURES = (1.0, 0.1, 0.01, 0.001)
_DROPS = (100, 1_000, 10_000)
_X = 5e-4  # alpha h of figures 2 and 11.


def figure_1():
    """Returns a picture of the risk of coordinates, with and without decay.

    By equation (3) at batch size 1, with h = c: the rate 0.5, beside one that
    is divided by 10 after 100, 1,000 and 10,000 steps.
    """
    steps = np.arange(1, 50_001)
    decay = 0.1 ** np.searchsorted(_DROPS, steps, side="left")
    figure, panels = new(2, sharey=True)
    for axes, rates, title in (
        (panels[0], np.full(len(steps), 0.5), "constant rate"),
        (panels[1], 0.5 * decay, "rate divided by 10 at the lines"),
    ):
        risks = _risks(rates)
        for h, values in zip(_CURVATURES, risks.T):
            axes.plot(steps, values, label=f"h = {h:g}")
        axes.plot(steps, risks.sum(1), color="black", label="all of them")
        finish(axes, title, xscale="log", yscale="log", xlabel="step")
    for drop in _DROPS:
        panels[1].axvline(drop, color="gray", linestyle=":", linewidth=0.8)
    panels[0].set_ylabel("expected risk")
    return figure


def _risks(rates):
    """Returns the risk of each coordinate after each step, [steps, d]."""
    h = np.array(_CURVATURES)
    moment, risks = np.ones_like(h), []
    for rate in rates:
        moment = (1 - rate * h) ** 2 * moment + rate**2 * h
        risks.append(0.5 * h * moment)
    return np.array(risks)


def figure_2():
    """Returns a picture of convergence rate and steady state by momentum.

    One coordinate with alpha h = 0.0005 and c = h, batch size 1; beside them
    those of SGD with the effective learning rate.
    """
    beta = 1 - np.geomspace(1, 2e-2, 400)
    rate = np.abs(bounds.momentum_roots(_X, beta)[0])
    effective = _X / (1 - beta)
    model = from_columns([1.0])
    steady = bounds.momentum_steady_state(model, 1, _X, beta)
    plain = effective / (2 * (2 - effective))
    figure, (left, right) = new(2)
    left.plot(beta, rate, color="C3", label=r"momentum, $|r_1|$")
    label = r"SGD, $1 - \alpha h / (1 - \beta)$"
    left.plot(beta, 1 - effective, "C0--", label=label)
    right.plot(beta, steady, color="C3", label="momentum")
    right.plot(beta, plain, "C0--", label=r"SGD with $\alpha / (1 - \beta)$")
    finish(left, "Convergence rate", xlabel="momentum", ylim=(0.97, 1.001))
    finish(right, "Steady-state risk", xlabel="momentum")
    return figure


def figure_11():
    """Returns a picture of the first term of (6) against 1 - beta.

    For one coordinate with alpha h = 0.0005, after several numbers of steps;
    beside it that of SGD with the effective learning rate.
    """
    rest = np.geomspace(0.06, 1, 200)
    figure, (axes,) = new()
    for steps, shade in zip((100, 1000, 3000), (0.4, 0.7, 1.0)):
        ours = [bounds.momentum_convergence(_X, 1 - r, steps) for r in rest]
        axes.plot(rest, ours, color="C3", alpha=shade)
        axes.plot(rest, (1 - _X / rest) ** (2 * steps), "C0--", alpha=shade)
        axes.annotate(
            f"t = {steps}", (rest[-1], ours[-1]), (4, -3), fontsize=8,
            textcoords="offset points",
        )  # fmt: skip
    axes.plot([], [], color="C3", label="momentum")
    axes.plot([], [], "C0--", label=r"SGD with $\alpha / (1 - \beta)$")
    finish(
        axes, "First term of equation (6)", xscale="log", yscale="log",
        xlabel=r"$1 - \beta$", ylabel="part of the initial risk that is left",
        ylim=(1e-8, 2), xlim=(0.05, 1.8),
    )  # fmt: skip
    return figure
