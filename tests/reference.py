"""K-FAC in float64 NumPy, from DESIGN.md and the papers; shares no code.

Symbols: s are pre-activations, a inputs, g gradients of s; A and G the two
factors of a layer, V its gradient, U its update direction, both [d_in, d_out].
"""

import itertools

import numpy as np


def softmax_cross_entropy(s, y):
    """dl_n/ds, [N, K], of -sum_k y_k log softmax(s)_k."""
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) - y


def binary_cross_entropy(s, y):
    """dl_n/ds, [N, K], of the mean over K outputs."""
    return (1 / (1 + np.exp(-s)) - y) / s.shape[-1]


def mean_squared_error(s, y):
    """dl_n/ds, [N, K], of the mean over K outputs."""
    return 2 * (s - y) / s.shape[-1]


# c of the loss l = c NLL, for K outputs (DESIGN, "Gradients of the statistics")
NLL_SCALE = {
    softmax_cross_entropy: lambda K: 1,
    binary_cross_entropy: lambda K: 1 / K,
    mean_squared_error: lambda K: 2 / K,
}


def empirical_gradient(loss, s, y, w):
    """g = d(sum_n w_n l_n)/ds; s, y [N, K], w [N]."""
    return w[:, None] * loss(s, y)


def sampled_gradient(loss, s, targets, w):
    """g = d(sum_n sqrt(c w_n) NLL_n)/ds; s, targets [N, K], w [N].

    w includes the loss weight.
    """
    c = NLL_SCALE[loss](s.shape[-1])
    nll_gradient = loss(s, targets) / c
    return np.sqrt(c * w)[:, None] * nll_gradient


class Factors:
    """A and G of one W: debiased running averages, and what inverts them."""

    def __init__(self):
        self.M, self.c = [0.0, 0.0], 0.0

    def update(self, moments, rho):
        """M = rho M + (1 - rho) X, and c likewise; the factor is M / c."""
        pairs = zip(self.M, moments)
        self.M = [rho * M + (1 - rho) * X for M, X in pairs]
        self.c = rho * self.c + (1 - rho)

    def refresh(self, damping, pi):
        """Takes the factors and damps them (Martens and Grosse, 6.3)."""
        self.pair = [M / self.c for M in self.M]
        shifts = self._shifts(damping, pi)
        self.damped = [
            X + shift * np.eye(len(X)) for X, shift in zip(self.pair, shifts)
        ]
        self.inverses = [np.linalg.inv(D) for D in self.damped]

    def _shifts(self, damping, pi):
        if pi is None:
            means = [np.trace(X) / len(X) for X in self.pair]
            pi = np.sqrt(means[0] / means[1]) if min(means) > 0 else 1.0
        return pi * np.sqrt(damping), np.sqrt(damping) / pi

    def factored(self, V):
        """U = (A + pi sqrt(lambda) I)^-1 V (G + sqrt(lambda) / pi I)^-1."""
        return self.inverses[0] @ V @ self.inverses[1]

    def exact(self, V, damping):
        """U = Q_A [(Q_A^T V Q_G) / (d_A d_G^T + lambda)] Q_G^T."""
        (d_A, Q_A), (d_G, Q_G) = map(np.linalg.eigh, self.pair)
        inner = (Q_A.T @ V @ Q_G) / (np.outer(d_A, d_G) + damping)
        return Q_A @ inner @ Q_G.T


class NormFactors(Factors):
    """F of a norm layer, beside a factor of 1: F + lambda I, no pi, no root."""

    def _shifts(self, damping, pi):
        return damping, 0.0


class Adam:
    """Kingma and Ba 2015, section 2, in the order of its last lines, which
    Keras takes; for one array."""

    def __init__(self):
        self.k, self.m, self.v = 0, 0.0, 0.0

    def step(self, g, rate):
        """What is added to the array for its gradient."""
        self.k += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        rate *= np.sqrt(1 - 0.999**self.k) / (1 - 0.9**self.k)
        return -rate * self.m / (np.sqrt(self.v) + 1e-7)


class KFAC:
    """DESIGN's steps 2 to 8 for one Net; numbers may be functions of t."""

    def __init__(
        self,
        net,
        learning_rate,
        damping,
        momentum=0.9,
        factor_decay=0.95,
        factor_update_period=1,
        inverse_update_period=10,
        inverter="cholesky",
        pi=None,
        norm_damping=None,
        embedding_damping=None,
        max_factor_size=None,
        kl_clip=None,
        weight_decay=None,
        decay_bias=True,
        global_clipnorm=None,
        ridge=0.0,
        fallback="adam",
        fallback_learning_rate=None,
    ):
        """`ridge` stands for a regularizer, ridge |kernel|^2.

        `fallback` is for the biases that no factor covers.
        """
        self.net = net
        self.learning_rate, self.damping = learning_rate, damping
        self.momentum, self.factor_decay = momentum, factor_decay
        self.factor_update_period = factor_update_period
        self.inverse_update_period = inverse_update_period
        self.inverter, self.pi, self.kl_clip = inverter, pi, kl_clip
        self.weight_decay, self.decay_bias = weight_decay, decay_bias
        self.global_clipnorm, self.ridge = global_clipnorm, ridge
        self.norm_damping, self.max_factor_size = norm_damping, max_factor_size
        self.embedding_damping = embedding_damping
        self.t, self.due_at = 0, {"factor": 0, "inverse": 0}
        self.factors = {
            x: [NormFactors() if x.is_norm else Factors() for _ in x.W]
            for x in net.layers
        }
        self.m = {x: [0.0] * len(x.weights()) for x in net.layers}
        self.adam = {
            (x, j): Adam()
            for x in net.layers
            for j in range(len(x.W), len(x.weights()))
            if fallback == "adam"
        }
        self.adam_rate, self.largest_rate = fallback_learning_rate, 0.0

    def step(self, x, loss_gradient, statistic_gradient, N, keep=None):
        """One update; the gradients map outputs to dL/ds and to g.

        N is the number of loss terms, `keep` says which rows no mask masks,
        for the layers that have len(keep) rows.
        """
        s = self.net.forward(x)
        V = self._gradients(self.net.backward(loss_gradient(s)))
        if self._due("factor", self.factor_update_period):
            uses = self.net.backward(statistic_gradient(s))
            for layer, factors in self.factors.items():
                moments = layer.moments(uses[layer], N, keep)
                for factor, pair in zip(factors, moments):
                    pair = [self._limit(X) for X in pair]
                    factor.update(pair, self._now(self.factor_decay))
        if self._due("inverse", self.inverse_update_period):
            for layer, factors in self.factors.items():
                for factor in factors:
                    factor.refresh(self._damping(layer), self.pi)
        U = {x: self._precondition(x, V[x]) for x in self.net.layers}
        self.nu = self._trust(U, V)
        for layer in self.net.layers:
            self._move(layer, U[layer], self.nu)
        self.t += 1

    def _now(self, value):
        return value(self.t) if callable(value) else value

    def _limit(self, X):
        """Keeps the diagonal alone of a factor with too long a side."""
        limit = self.max_factor_size or np.inf
        return X if len(X) <= limit else np.diag(np.diag(X))

    def _damping(self, layer):
        """lambda, or that of norm layers and of embeddings."""
        given = None
        if layer.is_norm:
            given = self.norm_damping
        elif layer.is_embedding:
            given = self.embedding_damping
        return self._now(self.damping if given is None else given)

    def _due(self, what, period):
        """Due when t >= last + period; for a number: its multiples."""
        period = self._now(period)
        last = self.due_at[what]
        if self.t > 0 and self.t < last + period:
            return False
        self.due_at[what] = self.t
        return True

    def _gradients(self, uses):
        """V by layer, the sum over its uses, clipped to the global norm."""
        V = {x: _sum(x.gradient(*use) for use in uses[x]) for x in uses}
        for x in V:
            for v, W in zip(V[x], x.W):
                d_in = len(W) - x.has_bias
                v[:d_in] += 2 * self.ridge * W[:d_in]
        every = itertools.chain(*V.values())
        norm = np.sqrt(sum((part**2).sum() for part in every))
        limit = self.global_clipnorm or np.inf
        return {x: [v * min(1, limit / norm) for v in V[x]] for x in V}

    def _precondition(self, layer, V):
        """U of each W; a loose bias keeps its V."""
        U = list(V)
        for j, factors in enumerate(self.factors[layer]):
            if self.inverter == "eigen":
                U[j] = factors.exact(V[j], self._damping(layer))
            else:
                U[j] = factors.factored(V[j])
        return U

    def _trust(self, U, V):
        """nu = min(1, sqrt(kl_clip / (eta^2 sum <U, V>)))."""
        if self.kl_clip is None:
            return 1.0
        total = sum(
            (u * V[x][j]).sum()
            for x in U
            for j, u in enumerate(U[x])
            if (x, j) not in self.adam
        )
        eta = self._now(self.learning_rate)
        ratio = self._now(self.kl_clip) / (eta**2 * total)
        return min(1.0, np.sqrt(ratio)) if total > 0 else 1.0

    def _move(self, layer, U, nu):
        """m <- mu m - eta nu U, W <- (1 - eta wd) W + m."""
        eta, mu = self._now(self.learning_rate), self._now(self.momentum)
        self.largest_rate = max(self.largest_rate, eta)
        rate = self._now(self.adam_rate)
        if rate is None:
            rate = 3e-3 * eta / self.largest_rate
        for j, (W, u) in enumerate(zip(layer.weights(), U)):
            if (layer, j) in self.adam:
                self.m[layer][j] = self.adam[layer, j].step(u, rate)
            else:
                self.m[layer][j] = mu * self.m[layer][j] - eta * nu * u
            shrink = np.full(W.shape, 1 - eta * (self.weight_decay or 0))
            if not self.decay_bias and j >= len(layer.W):
                shrink[...] = 1.0
            elif not self.decay_bias and layer.has_bias:
                shrink[-1] = 1.0
            W[...] = shrink * W + self.m[layer][j]


def _sum(parts):
    return [sum(terms) for terms in zip(*parts)]
