"""Recurrent layers in float64 NumPy, for `reference`: loops over the steps.

A cell's W are the matrices that a step multiplies, [d_in (+ 1), d_out]: its
`step` takes the inputs and the states and returns the new states; its
`step_back` takes their gradients and returns those of all products and of the
states before. All are written out by hand.
"""

import numpy as np
import reference_layers


def sigmoid(s):
    return 1 / (1 + np.exp(-s))


def with_one(a):
    return np.hstack([a, np.ones((len(a), 1))])


class Simple:
    """h = tanh(W_0^T [x, 1] + W_1^T h)."""

    states = 1
    parts = "kernel", "recurrent_kernel"

    @staticmethod
    def matrices(kernel, recurrent, bias):
        return [np.vstack([kernel, bias]), recurrent]

    @staticmethod
    def step(W, x, states):
        (h,) = states
        inputs = [with_one(x), h]
        new = np.tanh(inputs[0] @ W[0] + h @ W[1])
        return [new], inputs, new

    @staticmethod
    def step_back(W, seen, new, gradients):
        g = gradients[0] * (1 - new**2)
        return [g, g], [g @ W[1].T]


class LSTM:
    """Gates i, f, c, o of W_0^T [x, 1] + W_1^T h."""

    states = 2
    parts = Simple.parts
    matrices = Simple.matrices

    @staticmethod
    def step(W, x, states):
        h, c = states
        inputs = [with_one(x), h]
        i, f, n, o = np.split(inputs[0] @ W[0] + h @ W[1], 4, axis=1)
        i, f, n, o = sigmoid(i), sigmoid(f), np.tanh(n), sigmoid(o)
        new_c = f * c + i * n
        new_h = o * np.tanh(new_c)
        return [new_h, new_c], inputs, (c, i, f, n, o, new_c)

    @staticmethod
    def step_back(W, seen, kept, gradients):
        c, i, f, n, o, new_c = kept
        d_h, d_c = gradients
        d_c = d_c + d_h * o * (1 - np.tanh(new_c) ** 2)
        g = np.hstack(
            [
                d_c * n * i * (1 - i),
                d_c * c * f * (1 - f),
                d_c * i * (1 - n**2),
                d_h * np.tanh(new_c) * o * (1 - o),
            ]
        )
        return [g, g], [g @ W[1].T, d_c * f]


class GRU:
    """h = z h + (1 - z) tanh(p_h + r q_h), p = W_0^T [x, 1], q of h so, too."""

    states = 1
    parts = "kernel", "recurrent_kernel"

    @staticmethod
    def matrices(kernel, recurrent, bias):
        return [np.vstack([kernel, bias[0]]), np.vstack([recurrent, bias[1]])]

    @staticmethod
    def step(W, x, states):
        (h,) = states
        inputs = [with_one(x), with_one(h)]
        p_z, p_r, p_h = np.split(inputs[0] @ W[0], 3, axis=1)
        q_z, q_r, q_h = np.split(inputs[1] @ W[1], 3, axis=1)
        z, r = sigmoid(p_z + q_z), sigmoid(p_r + q_r)
        n = np.tanh(p_h + r * q_h)
        return [z * h + (1 - z) * n], inputs, (h, z, r, n, q_h)

    @staticmethod
    def step_back(W, seen, kept, gradients):
        h, z, r, n, q_h = kept
        (d,) = gradients
        g_h = d * (1 - z) * (1 - n**2)
        g_z = d * (h - n) * z * (1 - z)
        g_r = g_h * q_h * r * (1 - r)
        q = np.hstack([g_z, g_r, r * g_h])
        return [np.hstack([g_z, g_r, g_h]), q], [d * z + q @ W[1][:-1].T]


class GRUResetBefore:
    """h = z h + (1 - z) tanh(p_h + W_2^T (r h)); W_1 has the gates z and r."""

    states = 1
    parts = "kernel", "recurrent_kernel/zr", "recurrent_kernel/h"

    @staticmethod
    def matrices(kernel, recurrent, bias):
        u = len(recurrent)
        return [
            np.vstack([kernel, bias]),
            recurrent[:, : 2 * u],
            recurrent[:, 2 * u :],
        ]

    @staticmethod
    def step(W, x, states):
        (h,) = states
        a = with_one(x)
        p_z, p_r, p_h = np.split(a @ W[0], 3, axis=1)
        q_z, q_r = np.split(h @ W[1], 2, axis=1)
        z, r = sigmoid(p_z + q_z), sigmoid(p_r + q_r)
        n = np.tanh(p_h + (r * h) @ W[2])
        return [z * h + (1 - z) * n], [a, h, r * h], (h, z, r, n)

    @staticmethod
    def step_back(W, seen, kept, gradients):
        h, z, r, n = kept
        (d,) = gradients
        g_h = d * (1 - z) * (1 - n**2)
        d_rh = g_h @ W[2].T
        g_z = d * (h - n) * z * (1 - z)
        g_r = d_rh * h * r * (1 - r)
        g_zr = np.hstack([g_z, g_r])
        before = d * z + d_rh * r + g_zr @ W[1].T
        return [np.hstack([g_zr, g_h]), g_zr, g_h], [before]


class Recurrent(reference_layers.Layer):
    """A recurrent layer; it skips the steps whose x is all 0, as if masked."""

    is_norm = is_embedding = False
    has_bias = True
    loose = ()

    def __init__(self, cell, kernel, recurrent, bias, sequences, backwards):
        self.cell, self.sequences, self.backwards = cell, sequences, backwards
        self.parts = cell.parts
        self.W = cell.matrices(kernel, recurrent, bias)
        self.W = [np.array(W, np.float64) for W in self.W]
        self.units = recurrent.shape[0]

    def weights(self):
        return self.W

    def _run(self, x):
        """Yields for each step (place in x, its output, what it saw)."""
        output = np.zeros((len(x), self.units))
        states = [output] * self.cell.states
        order = range(x.shape[1])
        for t in reversed(order) if self.backwards else order:
            new, inputs, kept = self.cell.step(self.W, x[:, t], states)
            keep = np.any(x[:, t] != 0, axis=1, keepdims=True)
            pairs = zip(new, states)
            states = [np.where(keep, n, old) for n, old in pairs]
            output = np.where(keep, new[0], output)
            yield t, output, (keep, inputs, kept)

    def forward(self, x):
        outputs = [output for _, output, _ in self._run(x)]
        return np.stack(outputs, 1) if self.sequences else outputs[-1]

    def _uses(self, x, g):
        """(a, g) of each W at all (example, step) pairs, and dL/dx."""
        steps = list(self._run(x))
        shape = (*x.shape[:2], -1)
        a = [np.zeros((*x.shape[:2], len(W))) for W in self.W]
        gs = [np.zeros((*x.shape[:2], W.shape[1])) for W in self.W]
        d_output = np.zeros((len(x), self.units)) if self.sequences else g
        d_states = [np.zeros((len(x), self.units))] * self.cell.states
        for k in reversed(range(len(steps))):
            t, _, (keep, inputs, kept) = steps[k]
            if self.sequences:
                d_output = d_output + g[:, k]
            of_new = [d * keep for d in d_states]
            of_new[0] = of_new[0] + d_output * keep
            of_old = [d * ~keep for d in d_states]
            d_output = d_output * ~keep
            products, before = self.cell.step_back(self.W, inputs, kept, of_new)
            d_states = [b + old for b, old in zip(before, of_old)]
            for j, product in enumerate(products):
                a[j][:, t], gs[j][:, t] = inputs[j], product
        rows = [
            (p.reshape(-1, p.shape[-1]), q.reshape(-1, q.shape[-1]))
            for p, q in zip(a, gs)
        ]
        kernel = self.W[0][: x.shape[2]]
        return rows, (gs[0] @ kernel.T).reshape(*shape)

    def backward(self, x, g):
        return self._uses(x, g)[1]

    def gradient(self, x, g):
        return [a.T @ g for a, g in self._uses(x, g)[0]]

    def moments(self, uses, N, keep=None):
        of_uses = [self._uses(x, g)[0] for x, g in uses]
        for pairs in zip(*of_uses):
            a, g = map(np.vstack, zip(*pairs))
            if keep is not None and len(keep) == len(a):
                a, g = a[keep], g[keep]
            yield a.T @ a / N, g.T @ g / len(g)
