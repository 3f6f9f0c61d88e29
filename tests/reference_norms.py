"""Normalization layers in float64 NumPy, for `reference`."""

import numpy as np
import reference_layers


class Normalization(reference_layers.Layer):
    """s = gamma xhat + beta, with xhat of zero mean and unit variance.

    W is the one column (gamma, beta), of which either may be missing, and is
    [scales + shifts, 1]; its curvature is F of DESIGN's item 7.
    """

    is_norm = True

    def __init__(
        self,
        gamma,
        beta,
        gamma_axes,
        statistics_axes,
        epsilon,
        groups=None,
        rms=False,
        curvature="diagonal",
    ):
        """Says over what the statistics are taken, and what gamma scales.

        Args:
            gamma: The scales, or None; their axes are `gamma_axes` of x.
            beta: The shifts likewise.
            gamma_axes: A list of axes, not negative.
            statistics_axes: The axes of x of the means; if there are groups,
                those of x with the last axis split into [groups, channels].
            epsilon: Is added to the variance.
            groups: A number of groups of channels, or None.
            rms: Whether no mean is subtracted from x; as in Keras the variance
                is about the mean all the same.
            curvature: What is kept of F: "diagonal", "unitwise" or "full".
        """
        parts = [np.ravel(v) for v in (gamma, beta) if v is not None]
        super().__init__([np.concatenate(parts)[:, np.newaxis]])
        self.has_scale, self.has_shift = gamma is not None, beta is not None
        self.gamma_axes, self.statistics_axes = gamma_axes, statistics_axes
        self.epsilon, self.groups = epsilon, groups
        self.rms, self.curvature = rms, curvature

    def _split(self, x):
        """x with its channels in groups."""
        if self.groups is None:
            return x
        return x.reshape(*x.shape[:-1], self.groups, -1)

    def _mean(self, x):
        return x.mean(tuple(self.statistics_axes), keepdims=True)

    def _center(self, x):
        return x if self.rms else x - self._mean(x)

    def _scale(self, x):
        """r = 1 / sqrt(variance + epsilon), for x with its channels split."""
        variance = self._mean((x - self._mean(x)) ** 2)
        return 1 / np.sqrt(variance + self.epsilon)

    def normalized(self, x):
        """xhat = r (x - mean), in the shape of x; without the mean if rms."""
        split = self._split(x)
        xhat = self._center(split) * self._scale(split)
        return xhat.reshape(x.shape)

    def _both(self, shape):
        """gamma and beta, in a shape that broadcasts to that of x."""
        sizes = [n if i in self.gamma_axes else 1 for i, n in enumerate(shape)]
        parts = np.split(self.W[0][:, 0], self.has_scale + self.has_shift)
        gamma = parts[0].reshape(sizes) if self.has_scale else 1.0
        beta = parts[-1].reshape(sizes) if self.has_shift else 0.0
        return gamma, beta

    def forward(self, x):
        gamma, beta = self._both(x.shape)
        return gamma * self.normalized(x) + beta

    def backward(self, x, g):
        """r (h - mean h - r (x - mean x) mean(h xhat)), with h = gamma g.

        The second term is that of the mean in xhat, the third that of r.
        """
        h = self._split(g * self._both(x.shape)[0])
        xhat, split = self._split(self.normalized(x)), self._split(x)
        r = self._scale(split)
        slope = r * (split - self._mean(split))
        inner = self._center(h) - slope * self._mean(h * xhat)
        return (r * inner).reshape(x.shape)

    def _per_example(self, x, g):
        """p_i = (sum_t g_it xhat_it, sum_t g_it), [examples, len(W)]."""
        kept = [0, *self.gamma_axes]
        positions = tuple(i for i in range(x.ndim) if i not in kept)
        terms = [g * self.normalized(x)] * self.has_scale + [g] * self.has_shift
        parts = [term.sum(positions).reshape(len(x), -1) for term in terms]
        return np.hstack(parts)

    def gradient(self, x, g):
        return [self._per_example(x, g).sum(0)[:, np.newaxis]]

    def moments(self, uses, N, keep=None):
        """F = (1/N) sum_i p_i p_i^T, as much as is kept, and a factor of 1."""
        F = 0.0
        for x, g in uses:
            if keep is not None and g.size == keep.size * g.shape[-1]:
                g = g * keep.reshape(*g.shape[:-1], 1)
            p = self._per_example(x, g)
            F = F + p.T @ p / N
        i = np.arange(len(F))
        channel = i % (len(F) // (self.has_scale + self.has_shift))
        same = {
            "diagonal": np.equal.outer(i, i),
            "unitwise": np.equal.outer(channel, channel),
            "full": True,
        }
        yield F * same[self.curvature], np.ones((1, 1))
