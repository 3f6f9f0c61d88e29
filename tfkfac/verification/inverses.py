"""Checks of U: that it solves the damped system for V, by its residual.

    factored   (A + pi sqrt(l) I) U (G + sqrt(l) / pi I) = V
    exact      A U G + l U = V
    one factor (F + l I) U = V

with A, G and F as they are in the optimizer's state, in float64.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfkfac.blocks.factored import FactoredBlock
from tfkfac.inverters import CholeskyInverter, EigenInverter
from tfkfac.verification.findings import (
    TOLERANCE,
    Finding,
    failed,
    judged,
    note,
)
from tfkfac.verification.observer import Update, owned_blocks
from tfkfac.verification.use import Array, in_float64

CHECK = "update U"
MOST = 0.3  # Whatever the condition.


def check(update: Update) -> list[Finding]:
    """Returns what is found of U, for the blocks that this rank owns."""
    inverter = update.attached.optimizer.inverter
    known = type(inverter) in (CholeskyInverter, EigenInverter)
    result = []
    for block in owned_blocks(update.attached):
        if any(id(v) not in update.V for v in block.variables):
            continue
        members = list(block.members)
        if not known or not all(isinstance(m, FactoredBlock) for m in members):
            sentence = "not checked, for its inverse is of a kind of its own."
            result.append(note(CHECK, block.path, sentence))
            continue
        factors = iter(update.factors[block])
        damping = update.dampings[block.damping]
        for member in members:
            own = [next(factors) for _ in member.factors]
            result.append(_of_member(update, member, own, damping, inverter))
    return result


def _of_member(update, member, factors, damping, inverter) -> Finding:
    if int(member.failures[0]):
        return failed(CHECK, member.path, _INVERSION)
    V, U = (
        in_float64(member.to_matrix([x[id(v)] for v in member.variables]))
        for x in (update.V, update.U)
    )
    residual, condition = _residual(factors, V, U, damping, inverter)
    dtype = member.factors[0].moment.dtype.as_numpy_dtype
    bound = min(max(TOLERANCE, 30 * np.finfo(dtype).eps * condition), MOST)
    size = np.linalg.norm(V)
    return judged(
        CHECK,
        member.path,
        float(np.linalg.norm(residual) / size) if size else 0.0,
        lambda: (
            f"U does not solve the damped system for V (up to {bound:.0e} may "
            "be rounding): look at `to_matrix`, `from_matrix` and "
            f"`precondition` of {type(member).__name__}."
        ),
        bound=bound,
    )


_INVERSION = (
    "its inversion failed, so that U is that of an earlier inverse, or V: "
    "raise the damping, or look for NaN in what the layer sees."
)


def _residual(
    factors: Sequence[Array], V: Array, U: Array, damping: float, inverter: Any
) -> tuple[Array, float]:
    """Returns (the left side less V, the condition of what is inverted)."""
    if len(factors) == 1:
        left = _left(factors[0], U) + damping * U
        return left - V, _condition(factors[0], damping)
    A, G = factors
    if isinstance(inverter, EigenInverter):
        left = _right(_left(A, U), G) + damping * U
        top = max(np.max(_largest(A) * _largest(G)), 0.0)
        return left - V, 1 + top / damping
    shifts = _shifts(A, G, damping, inverter.pi)
    left = _left(A, U) + shifts[0][:, np.newaxis, np.newaxis] * U
    left = _right(left, G) + shifts[1][:, np.newaxis, np.newaxis] * left
    pairs = zip(factors, shifts)
    return left - V, sum(_condition(f, shift) for f, shift in pairs)


def _shifts(A, G, damping, pi) -> list[Array]:
    """Returns pi sqrt(l) and sqrt(l) / pi of each group."""
    root = np.sqrt(damping)
    if pi is None:
        a, g = _mean_diagonal(A), _mean_diagonal(G)
        usable = (a > 0) & (g > 0)
        pi = np.sqrt(np.where(usable, a, 1) / np.where(usable, g, 1))
    pi = np.broadcast_to(np.asarray(pi, "float64"), [len(A)])
    return [pi * root, root / pi]


def _mean_diagonal(factor: Array) -> Array:
    if factor.ndim == 3:
        factor = np.diagonal(factor, axis1=1, axis2=2)
    return factor.mean(axis=1)


def _left(factor: Array, U: Array) -> Array:
    return factor[..., np.newaxis] * U if factor.ndim == 2 else factor @ U


def _right(U: Array, factor: Array) -> Array:
    return U * factor[:, np.newaxis] if factor.ndim == 2 else U @ factor


def _largest(factor: Array) -> Array:
    """Returns a bound of the largest eigenvalue of each group."""
    if factor.ndim == 2:
        return factor.max(axis=1)
    return np.linalg.norm(factor, axis=(1, 2))


def _condition(factor: Array, shift) -> float:
    """Returns a bound of the condition of the damped factor."""
    shift = np.broadcast_to(shift, [len(factor)])
    return float(np.max(1 + _largest(factor) / shift))
