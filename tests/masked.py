"""Models with masks, and their factors from forward passes written by hand.

They run on a tape of their own, in float64:
    A = (1/N) sum a a^T,  G = (1/R) sum g g^T,  g = N dL/ds,
with N the number of loss terms and R that of rows, both of unmasked ones only.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkfac

B, T, S, D = 4, 5, 3, 6  # Examples, steps, steps of keys, features.
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, D))
KEEP = np.arange(T) < np.array([[2], [5], [3], [1]])
X[~KEEP] = 0  # Which `Masking` masks.
KEYS = RNG.normal(size=(B, S, D))
KEEP_KEYS = np.arange(S) < np.array([[3], [1], [2], [2]])
KEYS[~KEEP_KEYS] = 0
TOKENS = RNG.integers(1, 7, (B, S))
KEEP_TOKENS = np.arange(S) >= np.array([[1], [0], [2], [0]])
TOKENS[~KEEP_TOKENS] = 0
PAIR = RNG.normal(size=(B, 2))  # A target of each example,
PAIRS = RNG.normal(size=(B, T, 2))  # and of each step.

modes = pytest.mark.parametrize(
    "run_eagerly", [True, False], ids=["eager", "graph"]
)
ends = pytest.mark.parametrize("end", ["steps", "examples"])


class ByHand:
    """A forward pass on an own tape, and the rows of its linear layers."""

    def __init__(self):
        self.tape = tf.GradientTape(persistent=True)
        self._names, self._inputs, self._outputs, self._keeps = [], [], [], []

    def linear(self, layer, a, keep=None):
        """Returns s = a W + b, with the kernel as [d_in, d_out].

        Args:
            layer: The Keras layer, for its name and weights.
            a: [..., d_in].
            keep: Which rows count, by the first axes of `a`; None for all.
        """
        W, *b = (tf.constant(w) for w in layer.get_weights())
        s = a @ tf.reshape(W, [a.shape[-1], -1])
        if b:
            s += tf.reshape(b[0], [-1])
        self.tape.watch(s)
        rows = a.shape[:-1]
        keep = np.ones(rows, bool) if keep is None else np.asarray(keep)
        keep = keep.reshape(keep.shape + (1,) * (len(rows) - keep.ndim))
        self._names.append(layer.name)
        self._inputs.append(np.array(a))
        self._outputs.append(s)
        self._keeps.append(np.broadcast_to(keep, rows))
        return s

    def factors(self, loss, terms):
        """Returns A and G of each layer by name, for N = `terms`."""
        A, G, R = {}, {}, {}
        gradients = self.tape.gradient(loss, self._outputs)
        for name, a, g, keep in zip(
            self._names, self._inputs, gradients, self._keeps
        ):
            a = np.insert(a[keep], a.shape[-1], 1, axis=-1)
            g = terms * g.numpy()[keep]
            A[name] = A.get(name, 0) + a.T @ a / terms
            G[name] = G.get(name, 0) + g.T @ g
            R[name] = R.get(name, 0) + len(g)
        factors = {f"{name}/input_factor": A[name] for name in A}
        factors |= {f"{name}/output_factor": G[name] / R[name] for name in G}
        return factors


def ending(x, end):
    """Ends a model in a loss of each step, or of each example.

    The second has no mask: masked steps have gradients, too.
    """
    if end == "examples":
        x = layers.Flatten()(x)
    return layers.Dense(2, name="end")(x)


def ending_by_hand(hand, model, x, end, keep=KEEP):
    """Returns (L, N) above x, [B, T, ...], for the targets of `end`."""
    layer = model.get_layer("end")
    if end == "examples":
        s = hand.linear(layer, tf.reshape(x, [B, -1]))
        return tf.reduce_mean((s - PAIR) ** 2), B
    s = hand.linear(layer, x, keep)
    terms = tf.reduce_mean((s - PAIRS) ** 2, axis=-1)
    return tf.reduce_sum(tf.boolean_mask(terms, keep)) / keep.sum(), keep.sum()


def make(inputs, outputs):
    """A model with random weights and biases."""
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(1)
    for v in model.trainable_variables:
        v.assign(rng.normal(size=v.shape) / np.sqrt(v.shape[0]))
    return model


def step(model, x, y, run_eagerly=True, fisher="empirical"):
    """Returns (factors by the names of layer and factor, loss) of a step."""
    optimizer = tfkfac.KFAC(0.0, fisher=fisher, factor_decay=0.0, model=model)
    model.compile(optimizer, "mse", run_eagerly=run_eagerly)
    loss = model.train_on_batch(x, y)
    found = {
        "/".join(name.split("/")[-2:]): value[0]
        for name, value in optimizer.moments().items()
    }
    return found, loss


def check(model, x, end, by_hand, run_eagerly=True):
    """Compares the factors of one step with those of a forward pass by hand.

    Args:
        model: The model.
        x: Its inputs.
        end: As of `ending`.
        by_hand: From a `ByHand` to (L, N).
        run_eagerly: Of the model.
    """
    hand = ByHand()
    with hand.tape:
        loss, terms = by_hand(hand)
    expected = hand.factors(loss, terms)
    y = PAIRS if end == "steps" else PAIR
    found, of_model = step(model, x, y, run_eagerly)
    np.testing.assert_allclose(of_model, loss, 1e-6)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, 1e-9, 1e-12, name)
