"""What is tuned, within what bounds, and which settings are tried.

A study is made of arms: an optimizer of the trainers, with flags of its own.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

# From an arm to (--optimizer, more flags of the trainer).
ARMS = {
    "sgd": ("sgd", ()),
    "momentum": ("momentum", ()),
    "ema": ("sgd", ("--ema=0.9",)),
    "adam": ("adam", ()),
    "adam_without_momentum": ("adam_without_momentum", ()),
    "kfac": ("kfac", ()),
    "kfac_without_momentum": ("kfac_without_momentum", ()),
}


@dataclasses.dataclass(frozen=True)
class Range:
    """Where a hyperparameter lies.

    Attributes:
        low, high: The least and the largest value.
        scale: What is uniform: "linear", x; "log", log x; "complement",
            log (1 - x), for decays close to 1.
    """

    low: float
    high: float
    scale: str = "log"

    def __post_init__(self):
        if self.scale not in ("linear", "log", "complement"):
            raise ValueError(
                f"{self.scale!r} must be linear, log or complement"
            )
        sound = {
            "linear": 0 <= self.low <= self.high < math.inf,
            "log": 0 < self.low <= self.high < math.inf,
            "complement": 0 <= self.low <= self.high < 1,
        }
        if not sound[self.scale]:
            raise ValueError(
                f"from {self.low:g} to {self.high:g} is no range on a "
                f"{self.scale} scale"
            )

    def _position(self, x: float) -> float:
        if self.scale == "log":
            return math.log(x)
        return x if self.scale == "linear" else -math.log(1 - x)

    def at(self, place: float) -> float:
        """Returns the value at a place, from 0 for `low` to 1 for `high`."""
        low, high = self._position(self.low), self._position(self.high)
        x = low + place * (high - low)
        if self.scale == "log":
            return math.exp(x)
        return x if self.scale == "linear" else 1 - math.exp(-x)

    def place(self, value: float) -> float:
        """Returns the place of a value, the inverse of `at`."""
        low, high = self._position(self.low), self._position(self.high)
        if high == low:
            return 0.5
        return (self._position(value) - low) / (high - low)


_MOMENTUM = Range(0.3, 0.99, "complement")
_KFAC = {
    "learning_rate": Range(0.01, 1.0),
    "damping": Range(1e-4, 0.1),
    "kl_clip": Range(1e-4, 0.1),
    "factor_decay": Range(0.5, 0.99, "complement"),
}
# As Zhang et al. 2019, F.4, tune; the bounds are of this project.
QUASI_RANDOM = {
    "sgd": {"learning_rate": Range(0.01, 2.0)},
    "momentum": {"learning_rate": Range(0.001, 1.0), "momentum": _MOMENTUM},
    "ema": {
        "learning_rate": Range(0.01, 2.0),
        "ema": Range(0.5, 0.99, "complement"),
    },
    "adam": {
        "learning_rate": Range(1e-4, 0.03),
        "beta_1": _MOMENTUM,
        "beta_2": Range(0.9, 0.999, "complement"),
        "epsilon": Range(1e-9, 1e-3),
    },
    "adam_without_momentum": {
        "learning_rate": Range(1e-4, 0.03),
        "beta_2": Range(0.9, 0.999, "complement"),
        "epsilon": Range(1e-9, 1e-3),
    },
    "kfac": {**_KFAC, "momentum": Range(0.3, 0.95, "complement")},
    "kfac_without_momentum": _KFAC,
}
_KFAC_GRID = {
    "learning_rate": Range(1e-3, 2.187),
    "damping": Range(1e-4, 0.2187),
}
# Ma et al. 2019, III-B and table of rates, for K-FAC and momentum.
GRID = {
    "sgd": {"learning_rate": Range(0.05, 9.62)},
    "momentum": {
        "learning_rate": Range(0.05, 9.62),
        "momentum": Range(0.9, 0.999, "complement"),
    },
    "ema": {
        "learning_rate": Range(0.05, 9.62),
        "ema": Range(0.5, 0.99, "complement"),
    },
    "adam": {
        "learning_rate": Range(1e-4, 0.2187),
        "beta_1": Range(0.3, 0.99, "complement"),
    },
    "adam_without_momentum": {"learning_rate": Range(1e-4, 0.2187)},
    "kfac": _KFAC_GRID,
    "kfac_without_momentum": _KFAC_GRID,
}
# Of --schedule=linear, for any arm: gamma, and T in epochs (Zhang et al. 2019,
# F.3: tuned where the rate decays). Only a --space or a preset tunes them.
SCHEDULE = {
    "decay_to": Range(1e-3, 0.1),
    "decay_end": Range(20.0, 200.0),
}
SEARCHES = {"quasi": QUASI_RANDOM, "grid": GRID}


def quasi_random(space: dict[str, Range], count: int) -> list[dict]:
    """Returns settings at the first points of a scrambled Halton sequence.

    The first ones are the same whatever the count.
    """
    from scipy.stats import qmc

    points = qmc.Halton(len(space), rng=0).random(count)
    return [_settings(space, point) for point in points]


def bounds(ranges: dict[str, Range]) -> dict[str, tuple]:
    """Returns what a study holds of an arm's search space."""
    return {name: (r.low, r.high, r.scale) for name, r in ranges.items()}


def grid(space: dict[str, Range], points: int) -> list[dict]:
    """Returns all settings of a grid with so many points on each side."""
    if points < 2:
        raise ValueError(f"a grid of {points} points on a side is empty")
    side = [i / (points - 1) for i in range(points)]
    places = itertools.product(side, repeat=len(space))
    return [_settings(space, place) for place in places]


def _settings(space, point: Sequence[float]) -> dict[str, float]:
    """Returns the values at a point of the unit cube, to six digits."""
    return {
        name: float(f"{bounds.at(float(place)):.6g}")
        for (name, bounds), place in zip(space.items(), point)
    }


def at_border(space: dict[str, Range], settings: dict) -> list[str]:
    """Returns what lies in the outer twentieth of its range."""
    return [
        name
        for name, bounds in space.items()
        if bounds.low < bounds.high
        and not 0.05 <= bounds.place(settings[name]) <= 0.95
    ]


def read(given: dict, known: dict[str, dict[str, Range]]) -> dict:
    """Returns spaces with what a file gives in the place of some.

    Args:
        given: From an arm to {hyperparameter: [low, high, scale]}.
        known: From an arm to its space.

    Raises:
        ValueError: An arm, a hyperparameter or a range is wrong.
    """
    found = dict(known)
    if not isinstance(given, dict):
        raise ValueError("write {optimizer: {hyperparameter: [low, high]}}")
    for arm, ranges in given.items():
        if arm not in known:
            raise ValueError(f"{arm!r} is none of {', '.join(known)}")
        if not isinstance(ranges, dict) or "learning_rate" not in ranges:
            raise ValueError(f"{arm}: write {{'learning_rate': [low, high]}}")
        found[arm] = {}
        for name, bounds in ranges.items():
            every = {*known[arm], *QUASI_RANDOM[arm], *SCHEDULE}
            if name not in every:
                raise ValueError(
                    f"{arm}: {name!r} is none of {', '.join(sorted(every))}"
                )
            try:
                found[arm][name] = Range(*bounds)
                below_one = name in ("momentum", "ema") or "beta" in name
                if below_one and not found[arm][name].high < 1:
                    raise ValueError("it must be less than 1")
                if name == "decay_to" and found[arm][name].high > 1:
                    raise ValueError("it must be 1 at most")
            except (TypeError, ValueError) as error:
                raise ValueError(f"{arm}: {name}: {error}") from error
    return found
