"""The expected risk under gradient noise that falls with it, step by step.

In step t the gradient of one example has the variance `c_i (L_t / L_0)^q`,
where L_t is the expected risk of the weights that it is taken at. The exponent
q is 0 in Zhang et al. 2019; with 1 the noise is in proportion to the loss, as
where a network comes to fit every example.

The recursions (4), (21) and (38) of the second moments hold with any noise that
is known beforehand, and L_t is. So the risk is exact for this model. A network
has the noise of the loss where it is, not of the expected one: with the
exponent 1 the expectations are the same, and with others this is the
approximation E[L^q] = E[L]^q. All coordinates are scaled alike, and the
directions of the noise stay.

There is no closed form, as the coordinates are coupled by the risk: every step
is made, for a grid of settings at once. The first of them at the target is
refined, so that the search is one for the least steps as it goes.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from tools.quadratic import search, tuning
from tools.quadratic.model import NoisyQuadratic

MAX_STEPS = 100_000  # Each is made.
_RATES, _MEMORIES = (-16.0, 10.0), (-7.0, 0.0)  # Of tuning's search space.
_SPACING = (1.0, 0.5)
_ROUNDS, _FINER = 4, 3  # Grids, and how much finer than the one before.
_NEAR = np.arange(-_FINER, _FINER + 1)
_STARTS = 3
# The largest curvatures keep bins of their own, which tell what is stable.
_BINS = 1000


def risks(
    model: NoisyQuadratic,
    kind: str,
    batch_size: float,
    exponent: float,
    learning_rate,
    memory=0.0,
) -> Iterator[np.ndarray]:
    """Yields the risk after each step, of all settings; endlessly.

    Args:
        model: The model, already preconditioned.
        kind: "momentum", or "ema" for the risk of the average.
        batch_size: B.
        exponent: q.
        learning_rate: alpha, [k]; where it is too large the risk becomes
            infinite or NaN.
        memory: The momentum or averaging coefficient, [k]; 0 is SGD.
    """
    alpha, memory = (
        np.atleast_1d(np.asarray(values, float))[:, np.newaxis]
        for values in (learning_rate, memory)
    )
    h = model.curvature
    noise = model.noise / batch_size
    move = _momentum if kind == "momentum" else _ema
    moment = np.broadcast_to(model.moment, (len(alpha), len(h)))
    # Those of the velocity are 0; the average starts at the weights.
    more = (0 * moment, 0 * moment) if kind == "momentum" else (moment, moment)
    risk = np.full(len(alpha), model.initial_risk)
    while True:
        scale = (risk / model.initial_risk)[:, np.newaxis] ** exponent
        moment, *more = move(alpha, memory, h, scale * noise, moment, *more)
        risk = 0.5 * model.total(h * moment)
        if kind == "momentum":
            yield risk
        else:
            yield 0.5 * model.total(h * more[1])


def _momentum(alpha, beta, h, noise, moment, square, product):
    """Returns E[theta^2], E[m^2] and E[theta m] after a step of momentum."""
    crossed = beta * product + h * moment  # Of the old weights.
    square = beta**2 * square + 2 * beta * h * product + h**2 * moment + noise
    moment = moment - 2 * alpha * crossed + alpha**2 * square
    return moment, square, crossed - alpha * square


def _ema(alpha, gamma, h, noise, moment, both, average):
    """Returns E[theta^2], E[theta a] and E[a^2] after a step of averaging."""
    kept, rest = 1 - alpha * h, 1 - gamma
    moment = kept**2 * moment + alpha**2 * noise
    average = (
        gamma**2 * average + 2 * gamma * rest * kept * both + rest**2 * moment
    )
    return moment, gamma * kept * both + rest * moment, average


def least_steps(
    optimizer: str,
    model: NoisyQuadratic,
    batch_size: float,
    exponent: float,
    target: float,
    momenta: tuple[float, float] = (0.0, tuning.MAX_MOMENTUM),
    max_steps: int = MAX_STEPS,
) -> tuple[int, float, dict[str, float]]:
    """Returns the least steps to a risk, that risk, and the settings.

    Args:
        optimizer: "sgd", "momentum" or "ema".
        model: The model, already preconditioned.
        batch_size: B.
        exponent: q.
        target: The risk to reach.
        momenta: The least and the largest momentum.
        max_steps: Where to give up.

    Raises:
        UnreachableError: The target is not reached.
    """
    kind = "ema" if optimizer == "ema" else "momentum"
    space = tuning.optimizer(optimizer, momenta)
    ends = [
        (max(low, least), min(high, most))
        for (low, high), (least, most) in zip((_RATES, _MEMORIES), space.bounds)
    ]
    spacing = np.array(_SPACING[: len(ends)])
    model = model.binned(_BINS)
    grid = _grid(
        [
            np.unique([*np.arange(low, high, step), high])
            for (low, high), step in zip(ends, spacing)
        ]
    )
    low, high = np.array(ends).T
    h_1 = model.curvature[0]
    for _ in range(_ROUNDS):
        values = space.decode(grid, h_1)
        made = risks(model, kind, batch_size, exponent, *values.values())
        steps, found = _first(made, target, max_steps)
        best = grid[np.argsort(found, kind="stable")[:_STARTS]]
        spacing = spacing / _FINER
        near = _grid([d * _NEAR for d in spacing])
        near = (best[:, np.newaxis] + near).reshape(-1, len(low))
        grid = np.unique(np.clip(near, low, high), axis=0)
    tuner = tuning.Tuner(space, model, batch_size)
    return steps, float(np.min(found)), tuner.describe(best[0])


def _grid(axes):
    return np.array(list(itertools.product(*axes)))


def _first(made, target, max_steps):
    """Returns the first step with a risk at the target, and all of its risks;
    those that are not finite as infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        for step, found in enumerate(itertools.islice(made, max_steps), 1):
            found = np.where(np.isfinite(found), found, np.inf)
            if found.min() <= target:
                return step, found
    raise search.UnreachableError(
        f"target={target:g}: is not reached in {max_steps} steps, only "
        f"{found.min():.3g}; take a greater target, batch size or max_steps."
    )
