"""Embeddings in float64 NumPy, for `reference`."""

import numpy as np
import reference_layers


class Embedding(reference_layers.Layer):
    """s = W^T a with a the one-hot vector of a token: A_v = count_v / N."""

    is_embedding = True

    def __init__(self, embeddings):
        super().__init__([embeddings])

    def rows(self, x):
        return [np.eye(len(self.W[0]))[x.ravel()]]

    def output(self, s, shape):
        return s.reshape(*shape, -1)

    def backward(self, x, g):
        """Tokens have no gradient."""
        return None


class TiedEmbedding(Embedding):
    """Looks up integers, and projects anything else: s = W h (Zhang, A.1).

    With a soft cap the projection returns cap tanh(s / cap).
    """

    def __init__(self, embeddings, soft_cap=None, balanced=False):
        super().__init__(embeddings)
        self.soft_cap, self.balanced = soft_cap, balanced

    def forward(self, x):
        if x.dtype.kind == "i":
            return super().forward(x)
        s = x @ self.W[0].T
        cap = self.soft_cap
        return s if cap is None else cap * np.tanh(s / cap)

    def _logit_gradient(self, h, g):
        """The gradient of s, for the one of the capped logits."""
        if self.soft_cap is None:
            return g
        return g * (1 - np.tanh(h @ self.W[0].T / self.soft_cap) ** 2)

    def backward(self, x, g):
        if x.dtype.kind == "i":
            return None
        return self._logit_gradient(x, g) @ self.W[0]

    def gradient(self, x, g):
        """The sum over rows of (one-hot) g^T, or of g h^T."""
        if x.dtype.kind == "i":
            return super().gradient(x, g)
        V, d = self.W[0].shape
        g = self._logit_gradient(x, g)
        return [g.reshape(-1, V).T @ x.reshape(-1, d)]

    def _vectors(self, x, g, keep):
        """What stands on the two sides of W, unmasked: [R, V] and [R, d]."""
        if x.dtype.kind == "i":
            sides = super().rows(x)[0], g
        else:
            sides = self._logit_gradient(x, g), x
        sides = [s.reshape(-1, n) for s, n in zip(sides, self.W[0].shape)]
        if keep is not None and len(keep) == len(sides[0]):
            sides = [side[keep] for side in sides]
        return sides

    def moments(self, uses, N, keep=None):
        """The input factor, which is diagonal, and the output factor."""
        lookups = [u for u in uses if u[0].dtype.kind == "i"]
        projections = [u for u in uses if u[0].dtype.kind != "i"]
        (left_1, right_1), (left_2, right_2) = (
            map(np.vstack, zip(*(self._vectors(*u, keep) for u in group)))
            for group in (lookups, projections)
        )
        squares = [np.diag((left**2).sum(0)) for left in (left_1, left_2)]
        products = [right.T @ right for right in (right_1, right_2)]
        if not self.balanced:
            R = len(right_1) + len(right_2)
            yield sum(squares) / N, sum(products) / R
            return
        # Counts are of all terms, gradients of the rows of their use.
        A_1, G_1 = squares[0] / N, products[0] / len(right_1)
        A_2, G_2 = squares[1] / len(left_2), products[1] / N
        A = np.trace(G_1) * A_1 + np.trace(G_2) * A_2
        trace_F = np.trace(A_1) * np.trace(G_1) + np.trace(A_2) * np.trace(G_2)
        yield A, (np.trace(A_1) * G_1 + np.trace(A_2) * G_2) / trace_F
