"""Layers and chains of layers in float64 NumPy, for `reference`.

A layer computes s = W^T a on each of its rows; W is [d_in (+ 1), d_out], and
its last row is the bias. A layer with groups has a W for each.
"""

import numpy as np


class Layer:
    """s = W^T a; the linear maps between tensors and rows are `rows` and so on.

    The maps below are those of a dense layer: its rows are all leading axes.
    """

    is_norm = is_embedding = False

    def __init__(self, kernels, bias=None, loose=None):
        """Takes kernels [d_in, d_out] by group and a bias [sum of d_out].

        `loose` is a bias outside of W: it is added to the output tensor, and
        is not preconditioned (DESIGN, "Fallback").
        """
        self.has_bias = bias is not None
        self.W = [np.array(kernel, np.float64) for kernel in kernels]
        if self.has_bias:
            biases = np.split(np.asarray(bias, np.float64), len(kernels))
            self.W = [np.vstack([W, b]) for W, b in zip(self.W, biases)]
        self.loose = [] if loose is None else [np.array(loose, np.float64)]

    def weights(self):
        """All arrays that are trained."""
        return self.W + self.loose

    def rows(self, x):
        """Inputs of each group, [R, d_in]."""
        return [x.reshape(-1, x.shape[-1])]

    def fold(self, rows, shape):
        """The transpose of `rows`: gradients [R, d_in] to one of x."""
        return rows[0].reshape(shape)

    def output(self, s, shape):
        """Pre-activations [R, d_out] to the output tensor."""
        return s.reshape(*shape[:-1], -1)

    def output_rows(self, g):
        """The transpose of `output`."""
        return g.reshape(-1, g.shape[-1])

    def inputs(self, x):
        """The vectors a of each group, [R, d_in (+ 1)]; a ends in 1."""
        one = np.ones((1, 1)) if self.has_bias else np.ones((1, 0))
        return [np.hstack([a, one.repeat(len(a), 0)]) for a in self.rows(x)]

    def output_gradients(self, g):
        """The gradients of s of each group, [R, d_out]."""
        return np.split(self.output_rows(g), len(self.W), axis=1)

    def forward(self, x):
        s = [a @ W for a, W in zip(self.inputs(x), self.W)]
        return self.output(np.hstack(s), x.shape) + sum(self.loose)

    def backward(self, x, g):
        """The gradient of x for the gradient g of the output tensor."""
        d_in = len(self.W[0]) - self.has_bias
        gs = self.output_gradients(g)
        rows = [g_j @ W[:d_in].T for g_j, W in zip(gs, self.W)]
        return self.fold(rows, x.shape)

    def gradient(self, x, g):
        """The gradients of W, sum_r a_r g_r^T, and of the loose bias."""
        pairs = zip(self.inputs(x), self.output_gradients(g))
        V = [a.T @ g_j for a, g_j in pairs]
        return V + [_unbroadcast(g, b.shape) for b in self.loose]

    def moments(self, uses, N, keep=None):
        """A = (1/N) sum_r a_r a_r^T and G = (1/R) sum_r g_r g_r^T, by group.

        `keep` says which rows no mask masks, where the layer has len(keep).
        """
        inputs = zip(*(self.inputs(x) for x, _ in uses))
        gradients = zip(*(self.output_gradients(g) for _, g in uses))
        for a, g in zip(map(np.vstack, inputs), map(np.vstack, gradients)):
            if keep is not None and len(keep) == len(a):
                a, g = a[keep], g[keep]
            yield a.T @ a / N, g.T @ g / len(g)


class Convolution(Layer):
    """Rows are (example, output position), a is the patch (Zhang, eq. 15)."""

    def __init__(
        self,
        kernel,
        bias=None,
        strides=1,
        padding="valid",
        dilation=1,
        groups=1,
    ):
        """Takes a kernel [*window, c_in / groups, c_out], a bias [c_out]."""
        *self.window, c_in, c_out = kernel.shape
        matrix = kernel.reshape(-1, c_out)  # (window, c_in) by c_out
        super().__init__(np.split(matrix, groups, axis=1), bias)
        self.strides = np.broadcast_to(strides, len(self.window))
        self.dilation = np.broadcast_to(dilation, len(self.window))
        self.padding = padding

    def geometry(self, shape):
        """For an axis each: the number of positions, the zeros before it."""
        axes = zip(shape[1:-1], self.window, self.strides, self.dilation)
        for size, window, stride, dilation in axes:
            reach = (window - 1) * dilation + 1
            if self.padding == "same":
                count = -(-size // stride)
                zeros = max((count - 1) * stride + reach - size, 0)
                yield count, zeros // 2
            else:
                before = reach - 1 if self.padding == "causal" else 0
                yield -(-(size + before - reach + 1) // stride), before

    def taps(self, shape):
        """All (output position, place in the window, input position)."""
        counts, before = zip(*self.geometry(shape))
        for o in np.ndindex(*counts):
            for t in np.ndindex(*self.window):
                i = self.strides * o + self.dilation * t - before
                if np.all((i >= 0) & (i < shape[1:-1])):
                    yield o, t, tuple(i)

    def rows(self, x):
        counts = [count for count, _ in self.geometry(x.shape)]
        patches = np.zeros([len(x), *counts, *self.window, x.shape[-1]])
        for o, t, i in self.taps(x.shape):
            patches[:, *o, *t] = x[:, *i]
        rows = len(x) * np.prod(counts)
        slices = np.split(patches, len(self.W), axis=-1)
        return [a.reshape(rows, -1) for a in slices]

    def fold(self, rows, shape):
        counts = [count for count, _ in self.geometry(shape)]
        patch = [shape[0], *counts, *self.window, -1]
        patches = np.concatenate([a.reshape(patch) for a in rows], axis=-1)
        gradient = np.zeros(shape)
        for o, t, i in self.taps(shape):
            gradient[:, *i] += patches[:, *o, *t]
        return gradient

    def output(self, s, shape):
        counts = [count for count, _ in self.geometry(shape)]
        return s.reshape(shape[0], *counts, -1)


class Einsum(Layer):
    """EinsumDense: contracted by remaining kernel axes, in kernel order."""

    def __init__(self, equation, kernel, bias=None, bias_axes=""):
        """Takes an equation without dots and the bias in output order."""
        left, self.y = equation.split("->")
        self.x, k = left.split(",")
        self.contracted = "".join(c for c in k if c not in self.y)
        self.remaining = "".join(c for c in k if c in self.y)
        self.free = "".join(c for c in self.y if c not in k)
        self.sizes = dict(zip(k, kernel.shape))
        matrix = np.einsum(f"{k}->{self.contracted}{self.remaining}", kernel)
        d_out = np.prod([self.sizes[c] for c in self.remaining], dtype=int)
        kernels, loose = [matrix.reshape(-1, d_out)], None
        if bias is not None and set(bias_axes) != set(self.remaining):
            bias, loose = None, bias
        elif bias is not None:
            order = "".join(c for c in self.y if c in bias_axes)
            sizes = [self.sizes[c] for c in order]
            bias = np.einsum(f"{order}->{self.remaining}", bias.reshape(sizes))
            bias = bias.ravel()
        super().__init__(kernels, bias, loose)

    def rows(self, x):
        a = np.einsum(f"{self.x}->{self.free}{self.contracted}", x)
        return [a.reshape(-1, len(self.W[0]) - self.has_bias)]

    def fold(self, rows, shape):
        sizes = dict(zip(self.x, shape)) | self.sizes
        letters = self.free + self.contracted
        a = rows[0].reshape([sizes[c] for c in letters])
        return np.einsum(f"{letters},{self.x}->{self.x}", a, np.ones(shape))

    def output(self, s, shape):
        sizes = dict(zip(self.x, shape)) | self.sizes
        letters = self.free + self.remaining
        s = s.reshape([sizes[c] for c in letters])
        return np.einsum(f"{letters}->{self.y}", s)

    def output_rows(self, g):
        g = np.einsum(f"{self.y}->{self.free}{self.remaining}", g)
        return g.reshape(-1, self.W[0].shape[1])


class Function:
    """A stage without weights: `slope(x, g)` is its backward pass."""

    def __init__(self, forward, slope):
        self.forward, self.backward = forward, slope


RELU = Function(lambda x: np.maximum(x, 0), lambda x, g: g * (x > 0))
TANH = Function(np.tanh, lambda x, g: g * (1 - np.tanh(x) ** 2))
FLATTEN = Function(
    lambda x: x.reshape(len(x), -1), lambda x, g: g.reshape(x.shape)
)
MASKING = Function(  # steps that are 0 in all features stay 0
    lambda x: x, lambda x, g: g * np.any(x != 0, -1, keepdims=True)
)
CHANNELS_LAST = Function(
    lambda x: np.moveaxis(x, 1, -1), lambda x, g: np.moveaxis(g, -1, 1)
)
CHANNELS_FIRST = Function(
    lambda x: np.moveaxis(x, -1, 1), lambda x, g: np.moveaxis(g, 1, -1)
)


class Net:
    """A chain of stages; a layer that stands in it twice is shared."""

    def __init__(self, stages):
        self.stages = stages
        layers = [stage for stage in stages if isinstance(stage, Layer)]
        self.layers = list(dict.fromkeys(layers))

    def forward(self, x):
        self.seen = []
        for stage in self.stages:
            self.seen.append(x)
            x = stage.forward(x)
        return x

    def backward(self, g):
        """For each layer, its uses: pairs of its input and its gradient."""
        uses = {layer: [] for layer in self.layers}
        for stage, x in zip(reversed(self.stages), reversed(self.seen)):
            if isinstance(stage, Layer):
                uses[stage].append((x, g))
            g = stage.backward(x, g)
        return uses


def _unbroadcast(g, shape):
    """Sums g over the axes along which an array of `shape` is repeated."""
    g = g.sum(tuple(range(g.ndim - len(shape))))
    axes = tuple(i for i, size in enumerate(shape) if size == 1)
    return g.sum(axes, keepdims=True)
