"""The best piecewise constant learning rates for a given number of steps.

Zhang et al. 2019, section 3.7.2: 50 pieces, rates of at most 2 / h_1, the risk
by equation (3), minimized by a quasi-Newton method with the exact gradient.
"""

import numpy as np
from scipy import optimize

from tools.quadratic import tuning
from tools.quadratic.model import NoisyQuadratic
from tools.quadratic.risk import log_size

PIECES = 50
_MARGIN = 1e-6  # Rates stay below 2 / h_1 by this part of it.
_SPAN = 27.0  # Of the logarithms of rates.


def durations(steps: int) -> np.ndarray:
    """Returns the steps of each piece: 50 as equal as can be, none empty."""
    pieces = min(PIECES, steps)
    return np.diff(np.arange(pieces + 1) * steps // pieces)


def risk_and_gradient(
    model: NoisyQuadratic, batch_size: float, durations, rates
) -> tuple[float, np.ndarray]:
    """Returns the risk after all pieces and its gradient by the rates.

    A piece of n steps takes the risk l of a coordinate to s + A (l - s), with
    A = (1 - alpha h)^(2 n) and s the steady state of equation (4).

    Args:
        model: The model, preconditioned.
        batch_size: B.
        durations: n, the steps of each piece, [J].
        rates: alpha of each piece, below 2 / h_1, [J].
    """
    n = np.asarray(durations)[:, np.newaxis]
    alpha = np.asarray(rates, float)[:, np.newaxis]
    x = alpha * model.curvature
    forgotten = -np.expm1(2 * n * log_size(x))
    A = 1 - forgotten
    s = alpha * model.noise / (2 * batch_size * (2 - x))
    risks = np.empty((len(x) + 1, x.shape[1]))
    risks[0] = model.initial_risks
    for j in range(len(x)):
        risks[j + 1] = risks[j] + forgotten[j] * (s[j] - risks[j])
    # The derivative of risks[j + 1] by the rate of piece j, at fixed risks[j].
    rise = forgotten * model.noise / (batch_size * (2 - x) ** 2)
    ratio = np.divide(A, 1 - x, out=np.zeros_like(x), where=x != 1)
    rise -= 2 * n * model.curvature * ratio * (risks[:-1] - s)
    # Of the result by risks[j + 1].
    weights = np.ones_like(x)
    for j in reversed(range(len(x) - 1)):
        weights[j] = weights[j + 1] * A[j + 1]
    return float(model.total(risks[-1])), model.total(weights * rise)


class Tuner:
    """Tunes the schedule of SGD for a preconditioned model and a batch size.

    It searches over the logarithms of the rates.
    """

    def __init__(self, model: NoisyQuadratic, batch_size: float):
        self.model, self.batch_size = model, batch_size
        self.coarse = model.binned(tuning.BINS)
        self._constant = tuning.Tuner(tuning.sgd(), model, batch_size)
        self._top = np.log(2 * (1 - _MARGIN) / model.curvature[0])
        self._place = None

    def rough(self, steps: int) -> tuple[float, np.ndarray]:
        """Returns the log of the best risk of the coarse model, and where.

        Searches begin at the best constant rate, at an exponential decay and at
        the last schedule.
        """
        rate = self._constant.describe(self._constant.rough(steps)[1])
        times = _times(min(PIECES, steps))
        starts = [
            np.full(len(times), np.log(rate["learning_rate"])),
            self._top - 6 * np.maximum(0, times - 0.3),
        ]
        if self._place is not None:
            starts.append(self._last(steps))
        found = [self._minimize(self.coarse, start, steps) for start in starts]
        value, self._place = min(found, key=lambda pair: pair[0])
        return value, self._place

    def best(self, steps: int) -> tuple[float, np.ndarray]:
        """Returns the log of the best risk near the last place, and where."""
        start = self._last(steps)
        value, self._place = self._minimize(self.model, start, steps)
        return value, self._place

    def describe(self, place: np.ndarray) -> dict:
        """Returns the first, the last and all rates."""
        rates = np.exp(place).tolist()
        return {
            "learning_rate": rates[0],
            "final_learning_rate": rates[-1],
            "learning_rates": rates,
        }

    def _last(self, steps):
        """Returns the last schedule over another number of steps."""
        times = _times(min(PIECES, steps))
        return np.interp(times, _times(len(self._place)), self._place)

    def _minimize(self, model, start, steps):
        n = durations(steps)

        def value_and_gradient(place):
            rates = np.exp(place)
            value, gradient = risk_and_gradient(
                model, self.batch_size, n, rates
            )
            value = max(value, tuning.LEAST_RISK)
            return np.log(value), gradient * rates / value

        found = optimize.minimize(
            value_and_gradient,
            np.minimum(start, self._top),
            jac=True,
            method="L-BFGS-B",
            bounds=[(self._top - _SPAN, self._top)] * len(n),
            options={"ftol": 1e-12, "gtol": 1e-9, "maxiter": 1000},
        )
        return float(found.fun), found.x


def _times(pieces):
    """Returns the middle of each piece, as a part of the run."""
    return (np.arange(pieces) + 0.5) / pieces
