"""Programs of other people, in small, and their factors computed by hand.

A program is a function of `make`, which returns an optimizer for a model, and
of `eager`; it returns a `Program`. The forward passes by hand take weights and
activations from Keras' layers, and nothing from tfkfac.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tfkfac

BATCH = 8
SEED = 1337
STEPS = 8
KINDS = "input_factor", "output_factor"


@dataclasses.dataclass
class Program:
    """A program of one or more optimizers.

    Attributes:
        optimizers: By the name under which the program reports its loss, each
            optimizer.
        models: The models that they are of, by the same names.
        run: Trains for a number of steps, returns the losses of each of them.
        by_hand: Computes, by the same names, the last update that each
            optimizer will make in the next step, if the weights stay the same.
        falls: The losses that go down in a few steps with the defaults.
        clip: The global norm that the program clips the gradients to.
    """

    optimizers: dict[str, keras.optimizers.Optimizer]
    models: dict[str, keras.Model]
    run: Callable[[int], list[dict[str, float]]]
    by_hand: Callable[[], dict[str, "ByHand"]]
    falls: tuple[str, ...] = ()
    clip: float | None = None


class ByHand:
    """A forward pass in float64, the uses of its layers, its loss.

    Uses are recorded by the path of the layer below the attached model. The
    pass has to run under `tape`; `close` then takes the loss, and N.
    """

    def __init__(self):
        self.tape = tf.GradientTape(persistent=True)
        self._layers, self._weights, self._uses = {}, {}, {}

    def close(self, loss: tf.Tensor, count: int) -> "ByHand":
        """Ends the pass; `loss` is the one applied, `count` is N."""
        self.loss, self._count = loss, count
        return self

    def linear(self, path: str, layer, x: tf.Tensor) -> tf.Tensor:
        """Returns the output of a Dense layer, or of Conv1D of stride 1."""
        if isinstance(layer, layers.Conv1D):
            x = _windows(x, layer.kernel_size[0])
        self._layers[path] = layer
        if path not in self._weights:
            W = tf.reshape(layer.kernel, [-1, layer.kernel.shape[-1]])
            W = tf.concat([W, layer.bias[tf.newaxis]], axis=0)
            self._weights[path] = tf.cast(W, tf.float64)
            self.tape.watch(self._weights[path])
        a = tf.concat([x, tf.ones_like(x[..., :1])], axis=-1)
        s = tf.tensordot(a, self._weights[path], 1)
        self._uses.setdefault(path, []).append((a, s))
        return layer.activation(s)

    def chain(self, model, x, prefix: str = "") -> tf.Tensor:
        """Returns the output of a model whose layers follow each other."""
        x = tf.cast(x, tf.float64)
        for layer in model.layers:
            if isinstance(layer, layers.Dense | layers.Conv1D):
                x = self.linear(prefix + layer.name, layer, x)
            elif not isinstance(layer, layers.InputLayer):
                assert not layer.weights
                x = layer.call(x)
        return x

    def gradients(self):
        """Yields each layer and its V, [d_in + 1, d_out]."""
        for path, W in self._weights.items():
            yield self._layers[path], self.tape.gradient(self.loss, W).numpy()

    def factors(self) -> dict[str, np.ndarray]:
        """Returns A = 1/N sum a a^T and G = 1/R sum g g^T, g = N dL/ds."""
        factors = {}
        for path, uses in self._uses.items():
            pre_activations = [s for _, s in uses]
            g = self._count * _rows(
                self.tape.gradient(
                    self.loss,
                    pre_activations,
                    unconnected_gradients=tf.UnconnectedGradients.ZERO,
                )
            )
            a = _rows([a for a, _ in uses])
            factors[f"{path}/input_factor"] = a.T @ a / self._count
            factors[f"{path}/output_factor"] = g.T @ g / len(g)
        return factors


def forward(model, x) -> tf.Tensor:
    """Returns the output of a chain of layers, which leaves no record."""
    hand = ByHand()
    with hand.tape:
        return hand.chain(model, x)


def _rows(tensors) -> np.ndarray:
    """Returns all rows of tensors [..., d] of all uses, [R, d]."""
    return np.concatenate([np.reshape(t, (-1, t.shape[-1])) for t in tensors])


def _windows(x: tf.Tensor, size: int) -> tf.Tensor:
    """Returns the windows of an odd size around each position of `x`."""
    width, length = size // 2, x.shape[1]
    x = tf.pad(x, [[0, 0], [width, width], [0, 0]])
    return tf.concat([x[:, i : i + length] for i in range(size)], axis=-1)


class Still(keras.optimizers.Optimizer):
    """Keeps the gradients that it was given last, and changes no weight."""

    def __init__(self):
        super().__init__(learning_rate=0.0, name="still")

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.kept = self.add_optimizer_variables(variables, "gradient")

    def update_step(self, gradient, variable, learning_rate):
        self.assign(self.kept[self._get_variable_index(variable)], gradient)

    def of(self, variable) -> np.ndarray:
        return self.kept[self._get_variable_index(variable)].numpy()


def network(name, inputs, hidden, outputs, activation="tanh", last=None):
    """Returns a model of two Dense layers, "hidden" and "out"."""
    return keras.Sequential(
        [
            keras.Input((inputs,)),
            layers.Dense(hidden, activation=activation, name="hidden"),
            layers.Dense(outputs, activation=last, name="out"),
        ],
        name=name,
    )


def normal(*shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def replica(generator) -> keras.random.SeedGenerator:
    """Returns a generator that will draw what this one will."""
    copy = keras.random.SeedGenerator(SEED)
    copy.state.assign(generator.state)
    return copy


def fits(model, *data, **options) -> Callable[[int], list[dict]]:
    """Returns a `run` by `model.fit`, each epoch one batch of all the data."""

    def run(steps):
        history = model.fit(
            *data,
            batch_size=BATCH,
            epochs=steps,
            shuffle=False,
            verbose=0,
            **options,
        ).history
        return [
            {name: values[i] for name, values in history.items()}
            for i in range(steps)
        ]

    return run


def loops(step: Callable[[], tf.Tensor], eager: bool):
    """Returns a `run` of a step of one's own that returns the loss."""
    step = step if eager else tf.function(step)
    return lambda steps: [{"loss": float(step())} for _ in range(steps)]


def check_by_hand(program) -> None:
    """The computation by hand has the loss and the gradients of the program."""
    p = program(lambda model: Still(), eager=True)
    by_hand = p.by_hand()
    losses = p.run(1)[0]
    for name, hand in by_hand.items():
        np.testing.assert_allclose(losses[name], hand.loss, rtol=1e-5)
        gradients = list(hand.gradients())
        scale = 1.0
        if p.clip is not None:
            norm = np.sqrt(sum(np.sum(V**2) for _, V in gradients))
            assert norm > p.clip
            scale = p.clip / norm
        for layer, V in gradients:
            kernel, bias = map(p.optimizers[name].of, layer.trainable_variables)
            kernel = kernel.reshape(-1, kernel.shape[-1])
            _assert_close(np.vstack([kernel, bias]), scale * V, layer.path)


def check_factors(program, *, eager: bool, kinds=KINDS, **settings) -> None:
    """The factors of each update are those computed by hand."""
    settings = {"learning_rate": 0.0, "factor_decay": 0.0, **settings}
    p = program(lambda model: tfkfac.KFAC(model=model, **settings), eager=eager)
    for _ in range(2):
        by_hand = p.by_hand()
        p.run(1)
        for name, hand in by_hand.items():
            moments = p.optimizers[name].moments()
            for factor, expected in hand.factors().items():
                if factor.endswith(tuple(kinds)):
                    _assert_close(moments[factor][0], expected, factor)


def check_trains(program, **settings) -> None:
    """All weights change and stay finite, and the loss goes down."""
    p = program(lambda model: tfkfac.KFAC(model=model, **settings), eager=False)
    before = {name: _weights(model) for name, model in p.models.items()}
    losses = p.run(STEPS)
    for name, model in p.models.items():
        for old, new in zip(before[name], _weights(model)):
            assert np.isfinite(new).all()
            assert np.abs(new - old).max() > 0
    for name in p.falls:
        assert losses[-1][name] < losses[0][name]


def _weights(model) -> list[np.ndarray]:
    return [v.numpy() for v in model.trainable_variables]


def _assert_close(x, expected, name):
    np.testing.assert_allclose(
        x,
        expected,
        rtol=1e-4,
        atol=1e-5 * np.abs(expected).max(),
        err_msg=name,
    )
