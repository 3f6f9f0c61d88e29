"""The least number of steps to a target risk."""

import math
from collections.abc import Callable
from typing import Any


class UnreachableError(ValueError):
    """A target that cannot be asked for or is not reached."""


def least_steps(
    best: Callable[[int], tuple[float, Any]],
    target: float,
    guess: float,
    max_steps: int,
    tolerance: float = 0.0,
) -> tuple[int, float, Any]:
    """Returns the least t at which the best risk is no more than the target.

    The best risk is taken to fall with t: with more steps at smaller rates one
    does no worse. The search widens a bracket from the guess, then interpolates
    in log t and log risk, with a bisection in every fourth step.

    Args:
        best: From t to the log of the best risk and where it was found.
        target: The risk to reach.
        guess: Where to begin.
        max_steps: Where to give up.
        tolerance: Of the result, relative; 0 for the very step.

    Returns:
        t, the risk and where it was found.

    Raises:
        UnreachableError: The target is not reached in `max_steps` steps.
    """
    goal = math.log(target)
    fails, reaches = (0, math.inf), None  # (t, log of the risk[, where])
    t, factor, calls = int(max(1, min(guess, max_steps))), 1.005, 0
    while True:
        value, place = best(t)
        calls += 1
        if value <= goal:
            reaches = t, value, place
        elif t == max_steps:
            raise UnreachableError(
                f"target={target:g}: is not reached in {max_steps} steps, only "
                f"{math.exp(value):.3g}; take a greater target, batch size or "
                "max_steps."
            )
        else:
            fails = t, value
        if reaches is None:
            factor = min(factor**2, 16.0)
            t = min(max_steps, math.ceil(t * factor))
            continue
        low, high = fails[0], reaches[0]
        if high - low <= max(1, tolerance * high):
            return high, math.exp(reaches[1]), reaches[2]
        if low == 0:
            factor = min(factor**2, 16.0)
            t = int(high / factor)
        else:
            part = (fails[1] - goal) / (fails[1] - reaches[1])
            part = 0.5 if calls % 4 == 0 else part
            t = math.ceil(low * (high / low) ** part)
        t = max(low + 1, min(t, high - 1))
