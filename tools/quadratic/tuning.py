"""The best constant hyperparameters for a given number of steps.

At fixed t the risk is a smooth closed form of the learning rate and of the
momentum or averaging coefficient. With momentum and large batches it has many
local minima, as the coordinates of large curvature oscillate. So a search takes
a grid, polishes its best local minima by a quasi-Newton method and keeps the
best. Grids are laid over a model of 100 bins, whose minima lie close to those
of the model itself; the last polish and the risk are the model's own. In ten
cases of momentum with large batches the steps found were within one of those of
a grid five times as fine.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from scipy import optimize

from tools.quadratic import risk
from tools.quadratic.model import NoisyQuadratic

BINS = 100
# Above it the memory of momentum spans much of a run of many thousand steps,
# and momentum is no longer a mere factor of the learning rate.
MAX_MOMENTUM = 0.999
# The search space: the logit of the learning rate divided by the largest stable
# one, and the logarithm of 1 - momentum or 1 - averaging coefficient.
_RATES = (-40.0, 20.0)
_AVERAGING = (-20.0, 0.0)
_WIDE = (1.0, 0.5)  # Spacing of the grid over all of it.
_NEAR, _FINE = (4.0, 2.0), (0.125, 0.0625)  # Reach and spacing about a place.
_STARTS, _FINALISTS = 20, 3
LEAST_RISK = 1e-300  # Without noise it can be 0.
_DIFFERENCE = 3e-5  # Of central differences.


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer with constant hyperparameters.

    Attributes:
        risk: `risk(model, batch_size, steps, **hyperparameters)`.
        decode: From places in the search space, [..., k], and h_1 to the
            hyperparameters, [...].
        bounds: Of the search space, k pairs.
    """

    risk: Callable
    decode: Callable
    bounds: tuple[tuple[float, float], ...]


def sgd() -> Optimizer:
    return Optimizer(risk.sgd, _decode_sgd, (_RATES,))


def momentum(least: float = 0.0, most: float = MAX_MOMENTUM) -> Optimizer:
    """Returns SGD with a momentum between two numbers, or with that one."""
    bounds = math.log1p(-most), math.log1p(-least)
    return Optimizer(risk.momentum, _decode_momentum, (_RATES, bounds))


def ema() -> Optimizer:
    return Optimizer(risk.ema, _decode_ema, (_RATES, _AVERAGING))


def optimizer(name: str, momenta: tuple[float, float]) -> Optimizer:
    """Returns "sgd", "momentum" between the two numbers, or "ema"."""
    return {"sgd": sgd, "momentum": lambda: momentum(*momenta), "ema": ema}[
        name
    ]()


def _decode_sgd(place, h_1):
    return {"learning_rate": 2 / h_1 / (1 + np.exp(-place[..., 0]))}


def _decode_momentum(place, h_1):
    beta = -np.expm1(place[..., 1])
    rate = _decode_sgd(place, h_1)["learning_rate"] * (1 + beta)
    return {"learning_rate": rate, "momentum": beta}


def _decode_ema(place, h_1):
    return _decode_sgd(place, h_1) | {"averaging": -np.expm1(place[..., 1])}


class Tuner:
    """Tunes an optimizer for a preconditioned model and a batch size."""

    def __init__(
        self, optimizer: Optimizer, model: NoisyQuadratic, batch_size: float
    ):
        self.optimizer = optimizer
        self.model, self.batch_size = model, batch_size
        self.coarse = model.binned(BINS)
        self._low, self._high = np.array(optimizer.bounds).T
        self._place = None

    def rough(self, steps: int) -> tuple[float, np.ndarray]:
        """Returns the log of the best risk of the coarse model, and where."""
        axes = [
            np.linspace(low, high, math.ceil((high - low) / step) + 1)
            for low, high, step in zip(self._low, self._high, _WIDE)
        ]
        starts = self._minima(axes, steps)[:3]
        found = [self._polish(self.coarse, start, steps) for start in starts]
        value, self._place = min(found, key=lambda pair: pair[0])
        return value, self._place

    def best(self, steps: int) -> tuple[float, np.ndarray]:
        """Returns the log of the best risk near the last place, and where."""
        axes = [
            np.unique(np.clip(np.arange(at - reach, at + reach, step), *ends))
            for at, reach, step, *ends in zip(
                self._place, _NEAR, _FINE, self._low, self._high
            )
        ]
        starts = [self._place, *self._minima(axes, steps)[:_STARTS]]
        found = [self._polish(self.coarse, s, steps)[1] for s in starts]
        values = [self._log_risk(self.model, place, steps) for place in found]
        value, self._place = min(
            (
                self._polish(self.model, found[i], steps)
                for i in np.argsort(values)[:_FINALISTS]
            ),
            key=lambda pair: pair[0],
        )
        return value, self._place

    def describe(self, place: np.ndarray) -> dict[str, float]:
        """Returns the hyperparameters by name."""
        found = self.optimizer.decode(place, self.model.curvature[0])
        found = {name: float(value) for name, value in found.items()}
        if "momentum" in found:
            found["effective_learning_rate"] = found["learning_rate"] / (
                1 - found["momentum"]
            )
        return found

    def _log_risk(self, model, place, steps):
        values = self.optimizer.decode(place, self.model.curvature[0])
        risks = self.optimizer.risk(model, self.batch_size, steps, **values)
        return np.log(np.maximum(risks, LEAST_RISK))

    def _minima(self, axes, steps):
        """Returns the local minima of the grid, the best first."""
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        values = self._log_risk(self.coarse, grid, steps)
        padded = np.pad(values, 1, constant_values=np.inf)
        inner = (slice(1, -1),) * values.ndim
        lowest = np.ones(values.shape, bool)
        for axis in range(values.ndim):
            for shift in (1, -1):
                lowest &= values <= np.roll(padded, shift, axis)[inner]
        return grid[lowest][np.argsort(values[lowest])]

    def _polish(self, model, place, steps):
        """Returns the log of the risk at a local minimum, and where."""
        k = len(place)
        shifts = np.vstack([np.zeros((1, k)), np.eye(k), -np.eye(k)])

        def value_and_gradient(at):
            places = np.clip(
                at + _DIFFERENCE * shifts, self._low, self._high
            )  # fmt: skip
            values = self._log_risk(model, places, steps)
            rise = values[1 : k + 1] - values[k + 1 :]
            run = np.diag(places[1 : k + 1] - places[k + 1 :])
            return values[0], rise / np.where(run > 0, run, 1.0)

        found = optimize.minimize(
            value_and_gradient,
            place,
            jac=True,
            method="L-BFGS-B",
            bounds=self.optimizer.bounds,
            # One step more changes the log of the risk by about 1 / t.
            options={"ftol": max(1e-14, 1e-7 / steps), "gtol": 1e-9},
        )
        return float(found.fun), found.x
