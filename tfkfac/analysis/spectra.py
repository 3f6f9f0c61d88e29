"""Eigenvalues and eigenvectors of the Fisher, from the factors.

Zhang et al. 2019, appendix E. The factors need no further scale: with N loss
terms and R rows, and rows taken for independent of each other,

    F = (1/N) sum_r (a_r a_r^T) (x) (g_r g_r^T)
      ~ (1/N) sum_r a_r a_r^T (x) (1/R) sum_r g_r g_r^T = A (x) G

is the Fisher of the mean loss, for convolutions (eq. 15, R = N positions) as
for dense layers (eq. 13, R = N).
"""

import dataclasses
import math

import keras
import numpy as np

from tfkfac.blocks.factored import FactoredBlock
from tfkfac.distributed.loss_scale import unwrapped
from tfkfac.optimizer import KFAC


@dataclasses.dataclass(frozen=True)
class Direction:
    """An eigenvector of A (x) G: left right^T in one group, of norm 1.

    Attributes:
        layer: The path of its block.
        rank: The place of its eigenvalue among those of the block, from 1.
        eigenvalue: That of A (x) G, or of the one factor F.
        group: The group.
        left: The eigenvector of A or F, [d_in].
        right: The eigenvector of G, [d_out]; [1.] where there is but F.
    """

    layer: str
    rank: int
    eigenvalue: float
    group: int
    left: np.ndarray = dataclasses.field(repr=False, compare=False)
    right: np.ndarray = dataclasses.field(repr=False, compare=False)


def eigenvalues(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns the eigenvalues of the Fisher of each block, by its path.

    From the running averages of the factors: the products of those of A and G,
    of normalization layers those of F, each in decreasing order. What is less
    than rounding, 1.2e-7 of the largest of a factor in float32, is 0.

    Args:
        model: A model compiled with `tfkfac.KFAC` and trained, or restored.
            On several ranks there are the blocks that this rank owns.

    Raises:
        TypeError: The optimizer is no `KFAC`.
        ValueError: No factor has had an update.
    """
    found = {}
    for block in known_blocks(model):
        (d_A, _), (d_G, _) = _decompositions(block, vectors=False)
        products = d_A[:, :, np.newaxis] * d_G[:, np.newaxis, :]
        found[block.path] = np.sort(products, axis=None)[::-1]
    return found


def merged(spectrum: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the eigenvalues of all blocks, in decreasing order."""
    return np.sort(np.concatenate([*spectrum.values()]))[::-1]


def power_law(values: np.ndarray, last: int = 10_000) -> float:
    """Returns p of the line h_i = h / i^p through eigenvalues.

    By least squares of logarithms, at places i from 1 on that are evenly apart
    in log i; p = 1 for the spectrum of Zhang et al. 2019, section 3.5. NaN
    where less than two eigenvalues are positive.

    Args:
        values: In decreasing order.
        last: Where to end, if the positive values do not; by default at the
            dimension of the paper.
    """
    values = values[values > 0][:last]
    if len(values) < 2:
        return math.nan
    i = np.unique(np.geomspace(1, len(values), 200).round().astype(int))
    slope, _ = np.polyfit(np.log(i), np.log(values[i - 1]), 1)
    return float(-slope)


def directions(model: keras.Model, per_layer: int = 8) -> list[Direction]:
    """Returns eigenvectors of A (x) G of each block (Zhang et al. 2019, E.2).

    Those of positive eigenvalues, from the largest to the least of them, with
    places that are about evenly apart in their logarithm.

    Args:
        model: As of `eigenvalues`.
        per_layer: How many there are of each block, at most.
    """
    found = []
    for block in known_blocks(model):
        (d_A, Q_A), (d_G, Q_G) = _decompositions(block, vectors=True)
        products = d_A[:, :, np.newaxis] * d_G[:, np.newaxis, :]
        order = np.argsort(-products, axis=None, kind="stable")
        count = int(np.count_nonzero(products))
        if not count:
            continue
        places = np.geomspace(1, count, min(per_layer, count))
        for rank in np.unique(places.round().astype(int)):
            group, i, j = np.unravel_index(order[rank - 1], products.shape)
            found.append(
                Direction(
                    layer=block.path,
                    rank=int(rank),
                    eigenvalue=float(products[group, i, j]),
                    group=int(group),
                    left=_column(Q_A, d_A, group, i),
                    right=_column(Q_G, d_G, group, j),
                )
            )
    return found


def known_blocks(model) -> list[FactoredBlock]:
    """Returns the blocks whose factors are on this rank and had an update.

    Raises:
        TypeError, ValueError: As `eigenvalues`.
    """
    optimizer = unwrapped(getattr(model, "optimizer", None))
    if not isinstance(optimizer, KFAC):
        raise TypeError(
            f"The optimizer of {model.name!r} is "
            f"{type(optimizer).__name__}, not KFAC: it has no factors."
        )
    layers = optimizer.require_attached().register()
    blocks = [
        member
        for block in layers.registration.blocks
        if layers.distributor.owns(block)
        for member in block.members
        if all(factor.known() for factor in member.factors)
    ]
    if not blocks:
        raise ValueError(
            f"No factor of {model.name!r} has had an update: train it first, "
            "or restore it with its optimizer."
        )
    return blocks


def _decompositions(block, vectors: bool) -> list[tuple]:
    """Returns (d, Q) of A and G in float64, [groups, dim] and a dim more.

    Q is None for a diagonal factor, and without `vectors`; G is 1 for a block
    with one factor.
    """
    pairs: list[tuple[np.ndarray, np.ndarray | None]] = []
    for factor in block.factors:
        M = factor.moment.numpy().astype("float64") / factor.weight.numpy()
        if factor.diagonal:
            pairs.append((M, None))
            continue
        # The lower triangle may hold a sum over micro-steps.
        if vectors:
            d, Q = np.linalg.eigh(M, UPLO="U")
        else:
            d, Q = np.linalg.eigvalsh(M, UPLO="U"), None
        rounding = np.finfo(factor.moment.dtype.as_numpy_dtype).eps
        d[d < rounding * d[:, -1:]] = 0
        pairs.append((d, Q))
    if len(pairs) == 1:
        pairs.append((np.ones([len(pairs[0][0]), 1]), None))
    return pairs


def _column(Q, d, group, i) -> np.ndarray:
    return np.eye(1, d.shape[1], i)[0] if Q is None else Q[group, :, i]
