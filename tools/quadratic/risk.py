"""The exact expected risk of the noisy quadratic model after t steps.

Zhang et al. 2019, section 3 and appendices B to D. Every function takes a model
that is already preconditioned (`NoisyQuadratic.preconditioned`); m(0) = 0, and
the average starts at theta(0). Learning rates, momenta and averaging
coefficients may be arrays that broadcast; the risk then has their shape. There
is no loop over steps.

Momentum and averaging are, in each coordinate, linear recursions of second
order with roots r and q: 1 - alpha h and gamma for averaging, the two of
`z^2 - (1 - alpha h + beta) z + beta` for momentum. The impulse response is
`U_k = (r^k - q^k) / (r - q)`, and the second-moment recursions (21) and (38)
have the solution

    E[theta(t)^2] = f_t^2 E[theta(0)^2] + g^2 alpha^2 c / B sum_(k<=t) U_k^2
    f_t = U_(t+1) - r q U_t

with g = 1 for momentum and 1 - gamma for averaging. With the infinite sum in
place of the finite one these are the bounds (6) and (12); the finite sum is the
infinite one less that of a recursion that starts from U_t and U_(t+1).

Where the paper has misprints, simulation agrees with this: the sums of (23) and
(39) end at t, the covariance in (37) has the factor gamma (1 - alpha h), and
entry (2, 3) of (38) is 2 gamma (1 - alpha h).
"""

import numpy as np

from tools.quadratic.model import NoisyQuadratic

_LEAST_LOG = -1e4  # In place of the logarithm of 0; its exponential is 0.


def sgd(
    model: NoisyQuadratic, batch_size: float, steps: int, learning_rate
) -> np.ndarray:
    """Returns the risk of SGD, equation (4).

    Args:
        model: The model.
        batch_size: B.
        steps: t.
        learning_rate: alpha, below 2 / h_1.
    """
    alpha = np.asarray(learning_rate, float)[..., np.newaxis]
    x = alpha * model.curvature
    forgotten = -np.expm1(2 * steps * log_size(x))
    steady = alpha * model.noise / (2 * batch_size * (2 - x))
    start = model.initial_risks
    return model.total(start + forgotten * (steady - start))


def momentum(
    model: NoisyQuadratic,
    batch_size: float,
    steps: int,
    learning_rate,
    momentum,
) -> np.ndarray:
    """Returns the risk of SGD with momentum, equation (21) solved.

    Args:
        model: The model.
        batch_size: B.
        steps: t.
        learning_rate: alpha, below 2 (1 + beta) / h_1.
        momentum: beta, at least 0 and below 1.
    """
    alpha = np.asarray(learning_rate, float)[..., np.newaxis]
    beta = np.asarray(momentum, float)[..., np.newaxis]
    x, beta = np.broadcast_arrays(alpha * model.curvature, beta)
    fade, product = _momentum_response(steps, x, beta)
    # The sum of all squares, equation (31), less those after step t.
    total = (1 + beta) / ((1 - beta) * x * (2 + 2 * beta - x))
    total *= 1 - fade**2 - 2 * beta * x / (1 + beta) * product
    noise = alpha**2 * model.curvature * model.noise / (2 * batch_size)
    return model.total(fade**2 * model.initial_risks + noise * total)


def ema(
    model: NoisyQuadratic,
    batch_size: float,
    steps: int,
    learning_rate,
    averaging,
) -> np.ndarray:
    """Returns the risk of the exponential average of SGD, (38) solved.

    Args:
        model: The model.
        batch_size: B.
        steps: t.
        learning_rate: alpha, below 2 / h_1.
        averaging: gamma, at least 0 and below 1.
    """
    alpha = np.asarray(learning_rate, float)[..., np.newaxis]
    gamma = np.asarray(averaging, float)[..., np.newaxis]
    x, gamma = np.broadcast_arrays(alpha * model.curvature, gamma)
    first = np.abs(1 - x) >= gamma
    large = np.where(first, 1 - x, gamma)
    small = np.where(first, gamma, 1 - x)
    rest = np.where(first, x, 1 - gamma)
    gap = np.where(first, 1 - gamma - x, gamma + x - 1)
    fade, product = _real_response(steps, large, small, rest, gap)
    b = (1 - x) * gamma
    # Equation (47), and what comes after step t.
    total = (1 - gamma) * (1 + b) / ((1 + gamma) * (2 - x) * x * (1 - b))
    total *= 1 - fade**2 - 2 * b * x * (1 - gamma) / (1 + b) * product
    noise = alpha**2 * model.curvature * model.noise / (2 * batch_size)
    return model.total(fade**2 * model.initial_risks + noise * total)


def _momentum_response(steps, x, beta):
    """Returns f_t and U_t U_(t+1) of momentum for x = alpha h."""
    root = np.sqrt(beta)
    low = (1 - beta) / (1 + root)
    discriminant = (low**2 - x) * ((1 + root) ** 2 - x)
    mean, half = (1 + beta - x) / 2, np.sqrt(np.abs(discriminant)) / 2
    real = discriminant >= 0
    fade, product = np.empty(x.shape), np.empty(x.shape)

    m, h, b = mean[real], half[real], beta[real]
    large = m + np.copysign(h, m)
    small = np.divide(b, large, out=np.zeros_like(b), where=large != 0)
    rest = np.where(m > 0, x[real] / (1 - small), 1 - large)
    gap = 2 * np.copysign(h, m)
    fade[real], product[real] = _real_response(steps, large, small, rest, gap)

    m, h, b = mean[~real], half[~real], beta[~real]
    angle = steps * np.arctan2(h, m)
    cosine, sine = np.cos(angle), np.sin(angle) / h
    power = b ** (steps / 2)
    fade[~real] = power * (cosine + sine * (m - b))
    product[~real] = power**2 * sine * (cosine + sine * m)
    return fade, product


def _real_response(steps, large, small, rest, gap):
    """Returns f_t and U_t U_(t+1) for real roots.

    Args:
        steps: t.
        large, small: r and q, |r| >= |q|.
        rest: 1 - r, which may be far smaller than the rounding of r.
        gap: r - q, likewise.
    """
    power = np.exp((steps - 1) * log_size(rest))  # |r|^(t-1)
    w = np.divide(gap, large, out=np.ones_like(gap), where=large != 0)
    same_sign = w < 1
    series = -np.expm1(steps * log_size(w))
    if not same_sign.all():
        series = np.where(same_sign, series, 1 - (1 - w) ** steps)
    # U_t = r^(t-1) series; r^(t-1) enters squared, so that its sign is lost.
    series = np.divide(series, w, out=np.full_like(w, steps), where=w != 0)
    fade = power * (large + small * rest * series)
    product = power**2 * series * (large + small * series)
    return fade, product


def log_size(x):
    """Returns log |1 - x|, exact for small x too."""
    with np.errstate(divide="ignore"):
        return np.maximum(np.log1p(np.where(x < 1, -x, x - 2)), _LEAST_LOG)
