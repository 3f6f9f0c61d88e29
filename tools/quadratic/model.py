"""The noisy quadratic model: curvature, gradient noise, where it starts."""

import dataclasses
import pathlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class NoisyQuadratic:
    """Independent coordinates with the loss 1/2 sum_i h_i theta_i^2.

    Zhang et al. 2019, section 3.1: the gradient of one example is
    `h_i theta_i + sqrt(c_i) epsilon_i`, that of a batch has `c_i / B`.

    Attributes:
        curvature: h, [d], positive.
        noise: c, the variance of one example's gradient, [d].
        moment: E[theta_i(0)^2], [d].
        count: How many coordinates each entry stands for, [d].
    """

    curvature: np.ndarray
    noise: np.ndarray
    moment: np.ndarray
    count: np.ndarray

    @property
    def dimension(self) -> int:
        return round(float(self.count.sum()))

    @property
    def initial_risks(self) -> np.ndarray:
        """The expected loss of each coordinate before the first step, [d]."""
        return 0.5 * self.curvature * self.moment

    @property
    def initial_risk(self) -> float:
        return float(self.total(self.initial_risks))

    def total(self, values: np.ndarray) -> np.ndarray:
        """Returns the sum over all coordinates of values [..., d]."""
        # Not a matrix product: with threads it takes ten times as long.
        return np.einsum("...i,i->...", values, self.count)

    def preconditioned(self, power: float) -> "NoisyQuadratic":
        """Returns the model in which plain SGD is SGD preconditioned by H^p.

        Section 3.3: h h^-p, c h^-p, and theta h^(p/2), so that the losses are
        the same.
        """
        scale = self.curvature**power
        return dataclasses.replace(
            self,
            curvature=self.curvature / scale,
            noise=self.noise / scale,
            moment=self.moment * scale,
        )

    def binned(self, bins: int) -> "NoisyQuadratic":
        """Returns the model with its curvatures in bins of equal log-width.

        Section 3.7. A bin has the mean curvature, the mean noise and the total
        initial risk of its coordinates. Empty bins are left out; a model with
        no more entries than bins is returned as it is.
        """
        if bins >= len(self.curvature):
            return self
        logs = np.log(self.curvature)
        width = (logs.max() - logs.min()) / bins
        if width == 0:
            place = np.zeros(len(logs), int)
        else:
            place = np.minimum((logs.max() - logs) / width, bins - 1)
        _, place = np.unique(place.astype(int), return_inverse=True)

        def total(values):
            return np.bincount(place, values * self.count)

        count = np.bincount(place, self.count)
        curvature = total(self.curvature) / count
        return NoisyQuadratic(
            curvature=curvature,
            noise=total(self.noise) / count,
            moment=total(self.curvature * self.moment) / (count * curvature),
            count=count,
        )


def from_columns(curvature, noise=None, moment=None) -> NoisyQuadratic:
    """Returns the model of the given values, by default c = h and moments 1.

    Args:
        curvature: h, [d].
        noise: c, [d].
        moment: E[theta_i(0)^2], [d].

    Raises:
        ValueError: A value is not finite, a curvature not positive, or another
            value negative; the message names the first one.
    """
    h = np.array(curvature, float)
    c = h.copy() if noise is None else np.array(noise, float)
    s = np.ones_like(h) if moment is None else np.array(moment, float)
    if h.ndim != 1 or not h.size or not h.shape == c.shape == s.shape:
        raise ValueError(
            "curvature, noise and moments must be vectors of one length, 1 or "
            f"more: they have shapes {h.shape}, {c.shape}, {s.shape}."
        )
    for name, values, bad, mend in (
        ("curvature", h, ~(h > 0), "positive: leave out flat directions"),
        ("noise", c, ~(c >= 0), "0 or more"),
        ("initial second moment", s, ~(s >= 0), "0 or more"),
    ):
        bad |= ~np.isfinite(values)
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"row {row + 1}: the {name} {values[row]} must be finite and "
                f"{mend}."
            )
    order = np.argsort(-h, kind="stable")
    return NoisyQuadratic(h[order], c[order], s[order], np.ones_like(h))


def power_law(dimension: int) -> NoisyQuadratic:
    """Returns h_i = c_i = 1/i and theta(0) ~ N(0, I): Zhang, section 3.5."""
    return from_columns(1 / np.arange(1, dimension + 1))


def load(path: str) -> NoisyQuadratic:
    """Returns the model of a file: a row for each eigenvalue.

    Args:
        path: A `.npy` file or a text file (columns apart by blanks or commas,
            `#` before comments), with one to three columns: h; h and c; h, c
            and E[theta(0)^2]. What is left out is as in `from_columns`.

    Raises:
        ValueError: The file cannot be read or has bad values; the message
            names the file and the row.
    """
    try:
        if pathlib.Path(path).suffix == ".npy":
            rows = np.load(path, allow_pickle=False)
        else:
            text = pathlib.Path(path).read_text(encoding="utf-8")
            lines = text.replace(",", " ").splitlines()
            rows = [line.split("#")[0].split() for line in lines]
            rows = np.array([row for row in rows if row], float)
        rows = np.asarray(rows, float, copy=True)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot be read as a spectrum, one row of 1 to 3 numbers "
            f"for each eigenvalue: {error}"
        ) from error
    rows = rows[:, np.newaxis] if rows.ndim == 1 else rows
    if rows.ndim != 2 or not rows.size or rows.shape[1] > 3:
        raise ValueError(
            f"{path}: has shape {rows.shape}; a spectrum is a row for each "
            "eigenvalue, of h, or h and c, or h, c and E[theta(0)^2]."
        )
    try:
        return from_columns(*rows.T)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
