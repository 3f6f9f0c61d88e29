"""Elementwise scales and shifts in float64 NumPy, for `reference`."""

import numpy as np
import reference_layers


class Scale(reference_layers.Layer):
    """s = gamma f(x) + beta + h(x), with gamma and beta along `axes`.

    W is the one column (gamma, beta), of which either may be missing, and is
    [scales + shifts, 1]; of F of DESIGN's item 7 the diagonal is kept.
    A subclass has `f`, `h` and how gradients go through them, `back`.
    """

    is_norm = True

    def __init__(self, gamma, beta, axes):
        parts = [np.ravel(v) for v in (gamma, beta) if v is not None]
        super().__init__([np.concatenate(parts)[:, np.newaxis]])
        self.has_scale, self.has_shift = gamma is not None, beta is not None
        self.axes = axes

    def f(self, x):
        return x

    def h(self, x):
        return 0.0

    def back(self, x, g_f, g):
        """The gradient of x, for those of f(x) and of h(x)."""
        return g_f

    def _both(self, shape):
        sizes = [n if i in self.axes else 1 for i, n in enumerate(shape)]
        parts = np.split(self.W[0][:, 0], self.has_scale + self.has_shift)
        gamma = parts[0].reshape(sizes) if self.has_scale else 1.0
        beta = parts[-1].reshape(sizes) if self.has_shift else 0.0
        return gamma, beta

    def forward(self, x):
        gamma, beta = self._both(x.shape)
        return gamma * self.f(x) + beta + self.h(x)

    def backward(self, x, g):
        return self.back(x, g * self._both(x.shape)[0], g)

    def _per_example(self, x, g):
        """p_i, [examples, len(W)]."""
        over = tuple(i for i in range(1, x.ndim) if i not in self.axes)
        terms = [g * self.f(x)] * self.has_scale + [g] * self.has_shift
        parts = [term.sum(over).reshape(len(x), -1) for term in terms]
        return np.hstack(parts)

    def gradient(self, x, g):
        return [self._per_example(x, g).sum(0)[:, np.newaxis]]

    def moments(self, uses, N, keep=None):
        F = 0.0
        for x, g in uses:
            if keep is not None and g.size == keep.size * g.shape[-1]:
                g = g * keep.reshape(*g.shape[:-1], 1)
            p = self._per_example(x, g)
            F = F + (p**2).sum(0) / N
        yield np.diag(F), np.ones((1, 1))


class PReLU(Scale):
    """s = alpha min(x, 0) + max(x, 0)."""

    def f(self, x):
        return np.minimum(x, 0)

    def h(self, x):
        return np.maximum(x, 0)

    def back(self, x, g_f, g):
        return g_f * (x < 0) + g * (x > 0)


class OnePlusScale(Scale):
    """s = (1 + gamma) x + beta."""

    def h(self, x):
        return x

    def back(self, x, g_f, g):
        return g_f + g


class RMSNormalization(Scale):
    """s = gamma x / sqrt(mean(x^2) + epsilon), the mean along the axes."""

    def __init__(self, gamma, axes, epsilon):
        super().__init__(gamma, None, axes)
        self.epsilon = epsilon

    def _mean(self, x):
        return x.mean(tuple(self.axes), keepdims=True)

    def f(self, x):
        return x / np.sqrt(self._mean(x**2) + self.epsilon)

    def back(self, x, g_f, g):
        xhat = self.f(x)
        r = 1 / np.sqrt(self._mean(x**2) + self.epsilon)
        return r * (g_f - xhat * self._mean(g_f * xhat))
