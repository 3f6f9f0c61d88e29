"""Models of several structures, trained with `KFAC` and compared."""

import keras
import numpy as np

import tfkfac

L = keras.layers
RNG = np.random.default_rng(0)
STOP, STEPS, BATCH = 3, 6, 8
X = RNG.normal(size=(STEPS * BATCH, 4, 6)).astype("float32")
Y = RNG.normal(size=(STEPS * BATCH, 2)).astype("float32")


def sequential():
    return keras.Sequential(
        [
            keras.Input((4, 6)),
            L.Flatten(),
            L.Dense(5, "tanh"),
            L.BatchNormalization(),
            L.Dense(5, "tanh"),
            L.Dense(2),
        ]
    )


def nested():
    """A model in a model, and a layer that is called twice."""
    shared = L.Dense(6, "tanh")
    inner = keras.Sequential([L.LayerNormalization(), L.Dense(6)])
    inputs = keras.Input((4, 6))
    x = shared(inner(shared(inputs)) + inputs)
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))


def shared():
    """A layer that both models hold; `load_model` makes two of it."""
    layer = L.Dense(6, "tanh")
    inner = keras.Sequential([layer, L.LayerNormalization(), L.Dense(6)])
    inputs = keras.Input((4, 6))
    x = layer(inner(inputs) + inputs)
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))


@keras.saving.register_keras_serializable(package="structure_test")
class Subclassed(keras.Model):
    """Layers as attributes, in lists, in a dictionary and in a set."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.z = L.Dense(6, "tanh")
        self.attention = L.MultiHeadAttention(2, 3)
        self.many = [L.Dense(6), (L.Dense(6), {"a": L.LayerNormalization()})]
        self._few = {"b": keras.Sequential([L.Flatten(), L.Dense(4)])}
        self.last = {L.Dense(2)}

    def call(self, x):
        x = self.z(x)
        x = self.attention(x, x)
        x = self.many[1][1]["a"](self.many[1][0](self.many[0](x)))
        (last,) = self.last
        return last(self._few["b"](x))


def subclassed():
    model = Subclassed()
    model(X[:1])
    return model


def frozen():
    model = sequential()
    model.layers[1].trainable = False
    return model


def convolutional():
    return keras.Sequential(
        [
            keras.Input((4, 6)),
            L.SeparableConv1D(3, 2),
            L.GroupNormalization(3),
            L.Flatten(),
            L.Dense(2),
        ]
    )


def make(build, settings, eager=True):
    """A compiled model with weights that are its own."""
    model = build()
    for i, v in enumerate(model.trainable_variables):
        v.assign(np.random.default_rng(i).normal(size=v.shape) / 3)
    settings = {"factor_update_period": 2, **settings}
    optimizer = tfkfac.KFAC(
        0.05, damping=0.1, inverse_update_period=4, model=model, **settings
    )
    model.compile(optimizer, "mse", run_eagerly=eager)
    return model


def train(model, steps):
    for i in steps:
        part = slice(i * BATCH, (i + 1) * BATCH)
        model.train_on_batch(X[part], Y[part])


def values(variables):
    return [v.numpy() for v in variables]


def everything(model):
    optimizer = model.optimizer
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    found = {f"model {i}": v for i, v in enumerate(values(model.variables))}
    for i, v in enumerate(values(optimizer.variables)):
        found[f"optimizer {i}"] = v
    for i, v in enumerate(inner.curvature.state().values()):
        found[f"curvature {i}"] = v
    return found


def same(a, b):
    assert list(a) == list(b)
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], key)
