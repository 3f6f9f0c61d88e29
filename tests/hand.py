"""K-FAC in float64 for forward passes that are written by hand.

A pass is a function of `Hand`, which notes the products and scales in it;
TensorFlow differentiates it, and the rest is `reference` and NumPy.
"""

from collections.abc import Callable

import numpy as np
import reference
import tensorflow as tf


class Hand:
    """Weights by path, and the K-FAC updates that a forward pass gives them.

    Args:
        weights: By path: of a product the kernel [groups, d_in, d_out] or
            [d_in, d_out], a bias as one more row; of a scale a vector of all
            scales and then all shifts.
        products: The paths of the products.
        rho: The decay of the factors.
        **numbers: `learning_rate`, `momentum`, `damping`.
    """

    def __init__(self, weights, products, rho=0.95, **numbers):
        self.W = {k: np.array(v, np.float64) for k, v in weights.items()}
        self.products, self.rho, self.numbers = products, rho, numbers
        self.m = {k: np.zeros_like(v) for k, v in self.W.items()}
        self.factors = {}
        for path, W in self.W.items():
            kind = reference.NormFactors
            if path in products:
                kind = reference.Factors
            groups = len(W) if W.ndim == 3 else 1
            self.factors[path] = [kind() for _ in range(groups)]

    def product(self, path, a, mask=None):
        """s = W^T a for a [..., d_in], or a [..., groups, d_in].

        `mask` says which rows count; the rows are all leading axes.
        """
        W = self._tensors[path]
        d_in = self.W[path].shape[-2]
        if d_in == a.shape[-1] + 1:
            a = tf.concat([a, tf.ones_like(a[..., :1])], -1)
        if len(W.shape) == 3:
            s = tf.einsum("...gi,gio->...go", a, W)
        else:
            s = tf.einsum("...i,io->...o", a, W)
        self._uses.append((path, a, s, mask))
        return s

    def scale(self, path, x, channels=None):
        """gamma x + beta along the last axis; of `channels` a shift alone.

        The weights are what `channels` broadcasts to; p sums the rest.
        """
        W = self._tensors[path]
        size = x.shape[-1]
        if channels is None and len(self.W[path]) == 2 * size:
            s = x * W[:size] + W[size:]
        elif channels is None:
            s = x * W
        else:
            s = x + tf.reshape(W, channels)
        self._uses.append((path, x, s, channels))
        return s

    def update(self, forward: Callable, count: int, factor: float = 1.0):
        """One update; `forward(self)` returns the sum of the loss terms.

        Args:
            forward: The pass.
            count: N.
            factor: What the sum is multiplied by in V, besides 1 / N.
        """
        self._tensors = {k: tf.constant(v) for k, v in self.W.items()}
        self._uses = []
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(self._tensors)
            loss = forward(self)
        V = tape.gradient(loss, self._tensors)
        moments = {}
        for path, x, s, more in self._uses:
            g = tf.convert_to_tensor(tape.gradient(loss, s)).numpy()
            if path in self.products:
                pairs = self._kronecker(path, x.numpy(), g, more)
            else:
                pairs = self._elementwise(path, x.numpy(), g, more)
            moments.setdefault(path, []).append(pairs)
        for path, of_uses in moments.items():
            self._move(path, of_uses, np.array(V[path]) * factor / count, count)

    def _kronecker(self, path, a, g, mask):
        groups = self.W[path].shape[0] if self.W[path].ndim == 3 else 1
        a = a.reshape(-1, groups, a.shape[-1])
        g = g.reshape(-1, groups, g.shape[-1])
        if mask is not None:
            keep = np.ravel(mask).astype(bool)
            a, g = a[keep], g[keep]
        return [
            (a[:, i].T @ a[:, i], g[:, i].T @ g[:, i], len(a))
            for i in range(groups)
        ]

    def _elementwise(self, path, x, g, channels):
        size = x.shape[-1]
        B = len(x)
        if channels is not None:
            over = tuple(i for i in range(1, x.ndim) if channels[i] == 1)
            p = g.sum(over).reshape(B, -1)
        else:
            both = [g * x, g][: len(self.W[path]) // size]
            p = np.hstack([v.reshape(B, -1, size).sum(1) for v in both])
        return [(np.diag((p**2).sum(0)), np.ones((1, 1)), 1)]

    def _move(self, path, of_uses, V, count):
        number = self.numbers
        W = self.W[path]
        is_norm = path not in self.products
        V = V[:, np.newaxis] if is_norm else V
        V = V if W.ndim == 3 else V[np.newaxis]
        U = []
        for i, factors in enumerate(self.factors[path]):
            parts = [pairs[i] for pairs in of_uses]
            R = sum(part[2] for part in parts)
            A = sum(part[0] for part in parts) / count
            G = sum(part[1] for part in parts) / R
            factors.update([A, np.ones((1, 1)) if is_norm else G], self.rho)
            factors.refresh(number["damping"], None)
            U.append(factors.factored(V[i]))
        step = number["learning_rate"] * np.reshape(U, W.shape)
        self.m[path] = number["momentum"] * self.m[path] - step
        self.W[path] = W + self.m[path]


def stacked(kernel, bias=None):
    """A kernel with its bias as the last row, in float64."""
    W = np.asarray(kernel, np.float64)
    if bias is None:
        return W
    return np.vstack([W, np.ravel(np.asarray(bias, np.float64))])


def cross_entropy(s, y):
    """The sum of the terms for classes y, s [N, K]."""
    y = tf.one_hot(y, s.shape[-1], dtype=s.dtype)
    return -tf.reduce_sum(y * tf.nn.log_softmax(s))
