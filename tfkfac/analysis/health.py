"""How sound the curvature of each layer is, in numbers.

They are of what the last inversion left and of the factors as they are now, in
NumPy: what it takes goes with the size of the factors, and only of small ones
the eigenvalues are computed.
"""

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfkfac import keras_compat, rounding
from tfkfac.blocks import CurvatureBlock
from tfkfac.blocks.factored import FactoredBlock
from tfkfac.factors import Factor
from tfkfac.readings import Readings, read, sketch

SMALL = 128  # The longest side of factors whose rank is computed: about 1 ms.


def of_layers(optimizer, readings: Readings) -> dict[str, dict[str, Any]]:
    """Returns the numbers of each layer whose factors this rank owns.

    Args:
        optimizer: A `KFAC` whose steps are watched.
        readings: What they note.

    Returns:
        By the path of the block, None for what is not known or not finite:
        "age", the updates since its last inversion in this process;
        "failed" and "failed_in_a_row", its inversions that failed;
        "examples", the rows that its factors are the mean of, in effect;
        "rounding", what rounding may change of U (`Inverter.rounding`);
        "pi", the split of the damping: the root of what is added to the first
        factor over what is added to the second;
        "relative_damping", the damping over the mean eigenvalue of F;
        "shares", the sum over the updates of its part of sum <U, V>;
        "step", |m|^2 of its weights in the last update;
        "condition" and "movement", the largest of its factors;
        and "factors", by their names: "side", "groups", "diagonal", "ones"
        (elements of the diagonal that are of the input 1 of a bias), "rank",
        "silent" (elements of the diagonal that are 0, beside the largest),
        "condition" and "damping" (as it was inverted), and "movement" since
        then, |new - old| / |old| by `Readings.sketches`. Of several groups or
        parts they are the least rank, the worst condition and rounding, and
        else geometric means.
    """
    rho = float(optimizer.at_update("factor_decay", tf.float64))
    shares = read(readings.shares).tolist()
    found = {}
    dampings = {
        name: float(value)
        for name, value in optimizer.dampings(tf.float64).items()
    }
    for block, share in zip(readings.blocks, shares):
        damping = dampings[block.damping]
        momenta = [
            optimizer.momenta[keras_compat.index_of(optimizer, v)]
            for v in block.variables
        ]
        step = sum(float(np.sum(read(m.value) ** 2.0)) for m in momenta)
        layer = _of_block(block, readings, rho, damping)
        found[block.path] = layer | {"shares": share, "step": step}
    return _finite(found)


def _of_block(
    block: CurvatureBlock, readings: Readings, rho: float, damping: float
) -> dict[str, Any]:
    age = readings.age(block)
    failures = [read(m.failures) for m in block.members]
    inverses = [readings.inverse(m) for m in block.members]
    factors, curvatures = {}, []
    sketches = iter(readings.sketches[block])
    weights = [float(read(f.weight)) for f in block.factors]
    for member, inverse in zip(block.members, inverses):
        curvature = 1.0
        for i, factor in enumerate(member.factors):
            weight = float(read(factor.weight))
            X = read(factor.moment) / (weight or 1.0)
            old = next(sketches)
            factors[factor.name] = {
                "side": factor.dim,
                "groups": factor.groups,
                "diagonal": factor.diagonal,
                "ones": _ones(member, factor),
                **(_of_elements(factor, X) if weight else _NOTHING),
                "condition": inverse["condition"][i],
                "damping": inverse["shift"][i],
                "movement": None if age is None else _moved(X, read(old)),
            }
            d = X if factor.diagonal else np.diagonal(X, axis1=1, axis2=2)
            curvature = curvature * d.mean(axis=1, dtype="float64")
        curvatures.append(_geometric(curvature))
    shifts = [x["shift"] for x in inverses if len(x["shift"]) == 2]
    curvature = _geometric(curvatures)
    return {
        "age": age,
        "failed": int(sum(total for _, total in failures)),
        "failed_in_a_row": int(max(n for n, _ in failures)),
        "examples": _examples(
            float(read(readings.rows[block])), min(weights), rho
        ),
        "rounding": float(np.max([x["rounding"] for x in inverses])),
        "pi": math.sqrt(_geometric([a / b for a, b in shifts if b])),
        "relative_damping": damping / curvature if curvature else 0.0,
        "condition": _largest(factors, "condition"),
        "movement": _largest(factors, "movement"),
        "factors": factors,
    }


def _ones(member: FactoredBlock, factor: Factor) -> int:
    """Returns how many elements of a diagonal are of the input 1 of a bias."""
    has_bias = getattr(member, "bias", None) is not None
    is_of_inputs = factor.name.endswith("input_factor")
    return factor.groups if has_bias and is_of_inputs else 0


def _largest(factors: dict[str, dict[str, Any]], key: str) -> float | None:
    known = [v for f in factors.values() if (v := _finite(f[key])) is not None]
    return max(known, default=None)


def _examples(rows: float, c: float, rho: float) -> float | None:
    """Returns rows times the batches of the running average, in effect.

    (sum w)^2 / sum w^2 with the weights w of k batches, rho^i (1 - rho):
    c (1 + rho) / ((1 - rho) (2 - c)), where c = 1 - rho^k.
    """
    if not rows or not c > 0 or not rho < 1:  # As of a NaN.
        return None
    return rows * c * (1 + rho) / ((1 - rho) * (2 - min(c, 1.0)))


_NOTHING: dict[str, float | None] = {"rank": None, "silent": None}


def _of_elements(factor: Factor, X: np.ndarray) -> dict[str, float | None]:
    """Returns "rank" and "silent" of a factor, as `of_layers` says."""
    if not np.isfinite(X).all():
        return _NOTHING
    epsilon = float(np.finfo(X.dtype).eps)
    d = X if factor.diagonal else np.diagonal(X, axis1=1, axis2=2)
    silent = d <= epsilon * d.max(axis=1, keepdims=True)
    rank = None
    if factor.diagonal:
        rank = int((~silent).sum(axis=1).min())
    elif factor.groups * factor.dim**3 <= SMALL**3:
        d = np.linalg.eigvalsh(X)
        least = rounding.RESOLUTION * epsilon * d.max(axis=1, keepdims=True)
        rank = int((d > np.maximum(least, 0)).sum(axis=1).min())
    return {"rank": rank, "silent": int(silent.sum())}


def _moved(X: np.ndarray, old: np.ndarray) -> float | None:
    moved, size = np.linalg.norm(sketch(X) - old), np.linalg.norm(old)
    return float(moved / size) if size else None


def _geometric(values) -> float:
    """Returns the geometric mean; NaN of none, or where one is negative."""
    if not np.size(values):
        return math.nan
    with np.errstate(all="ignore"):
        return float(np.exp(np.mean(np.log(values))))


def _finite(value: Any) -> Any:
    """Returns numbers in dictionaries; None for those that are not finite."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    is_bad = isinstance(value, float) and not math.isfinite(value)
    return None if is_bad else value
