"""How fast factors move: Osawa et al. 2019, figure 4."""

from collections.abc import Mapping, Sequence

import numpy as np

PERCENTILES = (5, 25, 50, 75, 95)


def movement_percentiles(
    movements: Sequence[Mapping[str, float]],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns percentiles over the layers of the movement of their factors.

    Args:
        movements: Those of `tfkfac.callbacks.FactorMovement`: "update", t, and
            |X(t) - X(t-1)| / |X(t-1)| by the name of the factor (eq. 19).

    Returns:
        By kind ("input_factor" is A, "output_factor" G, "factor" the F of
        normalization layers): the updates t, [T], and the percentiles of
        `PERCENTILES`, [T, 5].
    """
    rows: dict[str, dict[float, list[float]]] = {}
    for movement in movements:
        for name, value in movement.items():
            if name != "update":
                of_kind = rows.setdefault(name.rsplit("/", 1)[-1], {})
                of_kind.setdefault(movement["update"], []).append(value)
    return {
        kind: (
            np.array([*of_kind]),
            np.array([np.percentile(v, PERCENTILES) for v in of_kind.values()]),
        )
        for kind, of_kind in rows.items()
    }
