"""Layers of one's own, as test models have them."""

import keras
import numpy as np
import pytest
import reference_layers
import reference_scales
import tensorflow as tf
from keras import layers, ops
from oracle import cross_entropy, single

import tfkfac

X = np.random.default_rng(0).normal(size=(8, 4))

Y = np.arange(8) % 3

eagerly = pytest.mark.parametrize(
    "eager", [True, False], ids=["eager", "graph"]
)


class Own(layers.Layer):
    """A layer of one product, with something before it and after.

    `way` says how the kernel w is read; mirrored by relu(x) W + b, then tanh.
    """

    parts = ("/w",)

    def __init__(self, way="matmul", units=5, **options):
        super().__init__(**options)
        self.way, self.units = way, units

    def build(self, shape):
        self.w = self.add_weight(shape=self._shape(shape[-1]), name="any")
        self.b = None
        if self.way not in ("no bias", "left"):
            self.b = self.add_weight(shape=(self.units,), name="any")

    def _shape(self, d):
        return (self.units, d) if self.way == "left" else (d, self.units)

    def call(self, x):
        a, w = ops.relu(x), self.w
        if self.way == "operator":
            s = a @ w
        elif self.way == "dot":
            s = ops.dot(a, w)
        elif self.way == "einsum":
            s = ops.einsum("...i,ij->...j", a, w)
        elif self.way == "tensorflow":
            s = tf.tensordot(a, w, 1)
        elif self.way == "left":
            s = ops.swapaxes(ops.matmul(w, ops.swapaxes(a, 1, 2)), 1, 2)
        else:
            s = ops.matmul(a, w)
        return ops.tanh(s if self.b is None else s + self.b)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units)

    def mirror(self, shape):
        w = np.asarray(self.w, np.float64)
        w = w.T if self.way == "left" else w
        b = None if self.b is None else np.asarray(self.b, np.float64)
        linear = reference_layers.Layer([w], b)
        return [reference_layers.RELU, linear, reference_layers.TANH]


class Scaled(layers.Layer):
    """(1 + gamma) x + beta, after a shift of each position."""

    parts = ("/shift", "/gamma")

    def build(self, shape):
        self.shift = self.add_weight(shape=(1, shape[1], 1), name="shift")
        self.gamma = self.add_weight(shape=(shape[-1],), name="gamma")
        self.beta = self.add_weight(shape=(shape[-1],), name="beta")

    def call(self, x):
        return (x + self.shift) * (1 + self.gamma) + self.beta

    def compute_output_shape(self, shape):
        return shape

    def mirror(self, shape):
        shift, gamma, beta = (
            np.asarray(v, np.float64)
            for v in (self.shift, self.gamma, self.beta)
        )
        last = {len(shape) - 1}
        return [
            reference_scales.Scale(None, shift, {1}),
            reference_scales.OnePlusScale(gamma, beta, last),
        ]


class Function(layers.Layer):
    """A layer whose call is a function of its weights, by shape."""

    def __init__(self, shapes, function, **options):
        super().__init__(**options)
        self.shapes, self.function = shapes, function

    def build(self, shape):
        for name, of in self.shapes.items():
            setattr(self, name, self.add_weight(shape=of, name=name))

    def call(self, x):
        return self.function(self, x)


def case_of(layer, shape=(3, 4), batch=4, **options):
    """A case of an own layer between two others."""
    case = single(layers.Dense(shape[-1]), shape, batch, **options)
    case.layers.insert(1, layer)
    return case


def trained(layer, shape=(4,), eager=False, steps=1, **settings):
    """Trains a model of the layer and a Dense layer; returns its optimizer."""
    model = keras.Sequential(
        [keras.Input(shape), layer, layers.Flatten(), layers.Dense(3)]
    )
    settings = {"learning_rate": 0.01, **settings}
    optimizer = tfkfac.KFAC(model=model, **settings)
    model.compile(optimizer, cross_entropy(), run_eagerly=eager)
    x = np.random.default_rng(0).normal(size=(8, *shape))
    for _ in range(steps):
        model.train_on_batch(x, Y)
    return optimizer


def summary(optimizer):
    lines = []
    optimizer.summary(print_fn=lines.append)
    return "\n".join(lines)
