"""Bounds on the risk and on the steps: Zhang et al. 2019, theorems 1 and 2.

Bounds on the risk are for each coordinate, [d]; that of all is their
`model.total`. They take a model that is already preconditioned, which
makes `sgd` equation (9).
"""

import numpy as np
from scipy import optimize

from tools.quadratic.model import NoisyQuadratic


def momentum_roots(x, beta) -> tuple[np.ndarray, np.ndarray]:
    """Returns r_1 and r_2 of theorem 1, complex; r_1 is equation (7).

    Args:
        x: alpha h.
        beta: The momentum.
    """
    x, beta = np.asarray(x, complex), np.asarray(beta, float)
    mean = (1 - x + beta) / 2
    square = (1 - beta) ** 2 - 2 * (1 + beta) * x + x**2
    half = np.sqrt(square) / 2
    return mean + half, mean - half


def transition_eigenvalues(x, beta) -> np.ndarray:
    """Returns the eigenvalues of momentum's second moments, equation (22).

    Args:
        x: alpha h.
        beta: The momentum.

    Returns:
        [..., 3], complex: beta and the roots of
        `z^2 - (beta^2 - 2 alpha h beta + (1 - alpha h)^2) z + beta^2`.
    """
    x, beta = np.broadcast_arrays(np.asarray(x, complex), beta)
    mean = (beta**2 - 2 * x * beta + (1 - x) ** 2) / 2
    half = np.sqrt(mean**2 - beta**2)
    return np.stack([beta + 0j, mean + half, mean - half], axis=-1)


def sgd(
    model: NoisyQuadratic, batch_size: float, steps: int, learning_rate: float
) -> np.ndarray:
    """Returns the bound (9) of each coordinate.

    Args:
        model: The model.
        batch_size: B.
        steps: t.
        learning_rate: alpha, below 2 / h_1.
    """
    x = learning_rate * model.curvature
    steady = learning_rate * model.noise / (2 * batch_size * (2 - x))
    return (1 - x) ** (2 * steps) * model.initial_risks + steady


def momentum_convergence(x, beta: float, steps: int) -> np.ndarray:
    """Returns the factor of the initial risk in (6), the first term there.

    Args:
        x: alpha h.
        beta: The momentum; not the critical one, (1 - sqrt(alpha h))^2.
        steps: t.

    Raises:
        ValueError: The momentum is the critical one of some coordinate.
    """
    r_1, r_2 = momentum_roots(x, beta)
    if np.any(r_1 == r_2):
        raise ValueError(
            f"momentum {beta} is (1 - sqrt(alpha h))^2 for some coordinate, "
            "where theorem 1 does not hold; take another one."
        )
    above = r_1 ** (steps + 1) - r_2 ** (steps + 1)
    return (
        np.real((above - beta * (r_1**steps - r_2**steps)) / (r_1 - r_2)) ** 2
    )


def momentum_steady_state(
    model: NoisyQuadratic, batch_size: float, learning_rate, momentum
) -> np.ndarray:
    """Returns the second term of (6), the risk after infinitely many steps."""
    alpha, beta = learning_rate, momentum
    denominator = 2 * beta + 2 - alpha * model.curvature
    return ((1 + beta) * alpha * model.noise) / (
        2 * batch_size * denominator * (1 - beta)
    )


def momentum(
    model: NoisyQuadratic,
    batch_size: float,
    steps: int,
    learning_rate: float,
    momentum: float,
) -> np.ndarray:
    """Returns the bound (6) of each coordinate, as `momentum_convergence`."""
    x = learning_rate * model.curvature
    factor = momentum_convergence(x, momentum, steps)
    return factor * model.initial_risks + momentum_steady_state(
        model, batch_size, learning_rate, momentum
    )


def ema(
    model: NoisyQuadratic,
    batch_size: float,
    steps: int,
    learning_rate: float,
    averaging: float,
) -> np.ndarray:
    """Returns the bound (12) of each coordinate.

    Args:
        model: The model.
        batch_size: B.
        steps: t.
        learning_rate: alpha, below 2 / h_1.
        averaging: gamma; no 1 - alpha h is equal to it.

    Raises:
        ValueError: The averaging coefficient is 1 - alpha h of a coordinate.
    """
    gamma = averaging
    r_1 = 1 - learning_rate * model.curvature
    if np.any(r_1 == gamma):
        raise ValueError(
            f"averaging coefficient {gamma} is 1 - alpha h for some "
            "coordinate, where theorem 2 divides by 0; take another one."
        )
    above = r_1 ** (steps + 1) - gamma ** (steps + 1)
    below = gamma * r_1 * (r_1**steps - gamma**steps)
    factor = ((above - below) / (r_1 - gamma)) ** 2
    steady = learning_rate * model.noise / (2 * batch_size * (1 + r_1))
    steady *= (1 - gamma) * (1 + r_1 * gamma)
    steady /= (1 + gamma) * (1 - r_1 * gamma)
    return factor * model.initial_risks + steady


def information(
    model: NoisyQuadratic, batch_size: float, target: float
) -> float:
    """Returns the steps that maximum likelihood needs: d / 2N is the target.

    Section 3.6, with N the examples seen. For C other than H the risk of the
    maximum-likelihood estimate is `sum_i c_i / h_i / 2N`.
    """
    total = model.total(model.noise / model.curvature)
    return float(total) / (2 * batch_size * target)


def bayes(model: NoisyQuadratic, batch_size: float, target: float) -> float:
    """Returns the steps that no algorithm can do without.

    The risk of the posterior mean, where theta(0) is Gaussian with independent
    coordinates of mean 0 and the given second moments s:
    `1/2 sum_i h_i / (1 / s_i + N h_i^2 / c_i)`. An algorithm that uses what it
    starts from can thus be below d / 2N, by little where the target is well
    below the initial risk.
    """
    open_ = (model.noise > 0) & (model.moment > 0)
    h, c = model.curvature[open_], model.noise[open_]
    precision = h**2 * model.moment[open_] / c
    start = (model.initial_risks * model.count)[open_]

    def excess(log_examples):
        return np.sum(start / (1 + precision * np.exp(log_examples))) - target

    if np.sum(start) <= target:
        return 0.0
    high = np.log(np.sum(start / precision) / target)
    low = min(high, 0.0) - 1.0
    while excess(low) <= 0:
        low -= 10.0
    return float(np.exp(optimize.brentq(excess, low, high)) / batch_size)
