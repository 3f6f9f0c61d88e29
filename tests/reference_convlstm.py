"""Recurrent convolutions in float64 NumPy, for `reference`."""

import numpy as np
from reference_layers import Convolution
from reference_recurrent import Recurrent, sigmoid


class ConvLSTM(Recurrent):
    """An LSTM of images (Shi et al. 2015), unrolled: its steps share weights.

    s = W_0^T [patch of x, 1] + W_1^T (patch of h) at each output position, the
    gates i, f, c, o of it. It skips the steps that are all 0, as if masked; by
    `positions` each position of a step by itself.
    """

    parts = "kernel", "recurrent_kernel"

    def __init__(
        self, kernel, recurrent, bias, window, sequences, backwards, positions
    ):
        self.sequences, self.backwards = sequences, backwards
        self.positions = positions
        self.has_bias = bias is not None
        self.products = (
            Convolution(kernel, bias, *window),
            Convolution(recurrent, None, 1, "same"),
        )
        self.W = [product.W[0] for product in self.products]
        self.units = recurrent.shape[-2]

    def _keep(self, x):
        """Whether a step counts, [batch, steps, *space or ones, 1]."""
        axes = -1 if self.positions else tuple(range(2, x.ndim))
        return np.any(x != 0, axis=axes, keepdims=True)

    def _run(self, x):
        sizes = [count for count, _ in self.products[0].geometry(x[:, 0].shape)]
        h = c = output = np.zeros((len(x), *sizes, self.units))
        order = range(x.shape[1])
        for t in reversed(order) if self.backwards else order:
            keep = self._keep(x)[:, t]
            s = sum(p.forward(a) for p, a in zip(self.products, (x[:, t], h)))
            i, f, n, o = np.split(s, 4, axis=-1)
            i, f, n, o = sigmoid(i), sigmoid(f), np.tanh(n), sigmoid(o)
            new_c = f * c + i * n
            new_h = o * np.tanh(new_c)
            seen = keep, h, (c, i, f, n, o, new_c)
            output = np.where(keep, new_h, output)
            yield t, output, seen
            h, c = np.where(keep, new_h, h), np.where(keep, new_c, c)

    def _uses(self, x, g):
        rows, d_x = ([], []), np.zeros(x.shape)
        steps = list(self._run(x))
        d_h = d_c = d_output = np.zeros(steps[0][1].shape)
        if not self.sequences:
            d_output = g
        for k in reversed(range(len(steps))):
            t, _, (keep, h, (c, i, f, n, o, new_c)) = steps[k]
            if self.sequences:
                d_output = d_output + g[:, k]
            d_new = (d_h + d_output) * keep
            d_new_c = d_c * keep + d_new * o * (1 - np.tanh(new_c) ** 2)
            at_s = np.concatenate(
                [
                    d_new_c * n * i * (1 - i),
                    d_new_c * c * f * (1 - f),
                    d_new_c * i * (1 - n**2),
                    d_new * np.tanh(new_c) * o * (1 - o),
                ],
                axis=-1,
            )
            d_x[:, t] = self.products[0].backward(x[:, t], at_s)
            d_h = d_h * ~keep + self.products[1].backward(h, at_s)
            d_c, d_output = d_c * ~keep + d_new_c * f, d_output * ~keep
            counts = np.broadcast_to(keep, (*at_s.shape[:-1], 1)).ravel()
            for pairs, product, a in zip(rows, self.products, (x[:, t], h)):
                a, at_rows = product.inputs(a)[0], product.output_rows(at_s)
                pairs.append((a[counts], at_rows[counts]))
        return [tuple(map(np.vstack, zip(*pairs))) for pairs in rows], d_x

    def moments(self, uses, N, keep=None):
        return super().moments(uses, N)
