"""Trains a Keras model with tfkfac and its mirror with `reference`."""

import dataclasses
import itertools

import keras
import numpy as np
import reference
import reference_layers
import reference_recurrent
from mirrors import mirror

import tfkfac

LOSSES = keras.losses
ONE_UPDATE = {
    "learning_rate": 0.1,
    "damping": 0.1,
    "momentum": 0.0,
    "kl_clip": None,
    "inverse_update_period": 1,
}


def dense_targets(loss, targets, K):
    """Targets as [N, K]: one-hot where they are classes, smoothed."""
    targets = np.asarray(targets)
    if isinstance(loss, LOSSES.SparseCategoricalCrossentropy):
        return np.eye(K)[targets.reshape(-1)]
    targets = targets.reshape(-1, K).astype(np.float64)
    smoothing = loss.get_config().get("label_smoothing", 0.0)
    # A binary target has two classes, the other one is left unsaid.
    classes = 2 if isinstance(loss, LOSSES.BinaryCrossentropy) else K
    return (1 - smoothing) * targets + smoothing / classes


def loss_gradient(loss):
    """The reference's derivative of the terms of a Keras loss."""
    if isinstance(loss, LOSSES.MeanSquaredError):
        return reference.mean_squared_error
    if isinstance(loss, LOSSES.BinaryCrossentropy):
        return reference.binary_cross_entropy
    return reference.softmax_cross_entropy


def injected(kind, targets, **options):
    """A likelihood of class `kind` that always samples `targets`."""

    class Injected(kind):
        def sample(self, outputs, uniforms):
            fixed = keras.ops.convert_to_tensor(targets)
            is_class = kind is tfkfac.Categorical
            return fixed if is_class else keras.ops.cast(fixed, outputs.dtype)

    return Injected(**options)


def relative_error(x, expected):
    """|x - expected| / |expected|; 0 where both are 0."""
    error = np.linalg.norm(x - expected)
    return error / np.linalg.norm(expected) if error else 0.0


def element_error(x, expected):
    """max |x - expected| / max |expected|; 0 where both are 0."""
    assert x.shape == expected.shape
    error = np.abs(x - expected).max()
    return error / np.abs(expected).max() if error else 0.0


def matrices(values, is_norm):
    """Saved values [groups, dim, dim], or [groups, dim] if diagonal.

    Those of a norm layer become one matrix, of all scales before all shifts;
    its groups, if any, are the channels.
    """
    if values.ndim == 2:
        values = values[:, :, np.newaxis] * np.eye(values.shape[1])
    if not is_norm:
        return values
    channels, n, _ = values.shape
    F = np.einsum("cij,cd->icjd", values, np.eye(channels))
    return F.reshape(1, n * channels, n * channels)


def refreshed(state, name, is_norm):
    """What an inverter saved of a factor: its inverse, or Q diag(d) Q^T."""
    if f"{name}/inverse" in state:
        return matrices(state[f"{name}/inverse"], is_norm)
    d, Q = state[f"{name}/eigenvalues"], state.get(f"{name}/eigenvectors")
    if Q is not None:
        d = np.einsum("gik,gk,gjk->gij", Q, d, Q)
    return matrices(d, is_norm)


class Projection:
    """The second use of a tied embedding, as one of a case's layers."""

    def __init__(self, embedding):
        self.embedding = embedding

    def __call__(self, h):
        return self.embedding(h, reverse=True)

    def compute_output_shape(self, shape):
        return self.embedding.compute_output_shape(shape, reverse=True)


@dataclasses.dataclass
class Case:
    """A chain of Keras layers, its data, and how it and its mirror train.

    `options` go to both optimizers, `keras_options` to tfkfac.KFAC alone, and
    `mirror_options` to reference.KFAC alone. `samples` are injected targets
    for the sampled Fisher; None takes the empirical one. `no_decay` names
    variables, `output_ridge` is an L2 activity regularizer of the last layer.
    """

    layers: list
    x: np.ndarray  # [steps * batch, ...]
    y: np.ndarray
    loss: keras.losses.Loss
    batch: int | None = None
    weights: np.ndarray | None = None
    loss_weight: float = 1.0
    samples: np.ndarray | None = None
    likelihood: type | None = None
    likelihood_options: dict = dataclasses.field(default_factory=dict)
    run_eagerly: bool = True
    jit_compile: bool = False
    options: dict = dataclasses.field(default_factory=dict)
    keras_options: dict = dataclasses.field(default_factory=dict)
    mirror_options: dict = dataclasses.field(default_factory=dict)
    no_decay: list = dataclasses.field(default_factory=list)
    output_ridge: float = 0.0

    def run(self):
        """Trains both; returns the relative errors of what came of it.

        They are those of the change of each W, and of the factors and inverses
        after the last update.
        """
        model = self._model()
        self._mirror(model)
        before = [W.copy() for W in self._weights()]
        self.kfac = reference.KFAC(
            self.net, **self.options, **self.mirror_options
        )
        self._compile(model)
        size = self.batch or len(self.x)
        for start in range(0, len(self.x), size):
            part = slice(start, start + size)
            weights = None if self.weights is None else self.weights[part]
            model.train_on_batch(self.x[part], self.y[part], weights)
            self._mirror_step(part, weights)
        trained = [
            W
            for layer, shape in self.shapes.items()
            for stage in self._stages(layer, shape)
            if isinstance(stage, reference_layers.Layer)
            for W in stage.weights()
        ]
        trios = zip(trained, self._weights(), before)
        errors = [relative_error(new - old, W - old) for new, W, old in trios]
        errors += self._curvature_errors(model.optimizer.curvature.state())
        assert not np.isnan(errors).any()  # which `max` may pass over
        return errors

    def condition(self):
        """The largest condition number of a damped factor."""
        blocks = itertools.chain(*self.kfac.factors.values())
        return max(np.linalg.cond(D) for f in blocks for D in f.damped)

    def _model(self):
        """The Keras model, with random weights and biases."""
        rng = np.random.default_rng(1)
        dtype = "int32" if self.x.dtype.kind == "i" else None
        inputs = outputs = keras.Input(self.x.shape[1:], dtype=dtype)
        for layer in self.layers:
            outputs = layer(outputs)
        model = keras.Model(inputs, outputs)
        for v in model.trainable_variables:
            assert v.dtype == keras.config.floatx()
            fan_in = max(np.prod(v.shape[:-1]), 1)
            v.assign(rng.normal(size=v.shape) / np.sqrt(fan_in))
        return model

    def _mirror(self, model):
        """Makes the mirror net; a layer that comes twice is one stage."""
        stages, known, self.shapes, self.blocks = [], {}, {}, {}
        shape = self.x.shape
        for use in self.layers:
            layer = use.embedding if isinstance(use, Projection) else use
            if layer not in known:
                known[layer] = self._stages(layer, shape)
                if layer.trainable_variables:
                    self.shapes[layer] = shape
                    self._name_blocks(layer, known[layer])
            stages += known[layer]
            shape = use.compute_output_shape(shape)
        self.net, self.K = reference_layers.Net(stages), shape[-1]

    def _name_blocks(self, layer, stages):
        """Notes the stages with weights, and which W, by the path of state."""
        stages = [s for s in stages if isinstance(s, reference_layers.Layer)]
        if isinstance(stages[0], reference_recurrent.Recurrent):
            for i, part in enumerate(stages[0].parts):
                self.blocks[f"{layer.name}/{part}"] = stages[0], slice(i, i + 1)
            return
        parts = ["/depthwise", "/pointwise"] if len(stages) == 2 else [""]
        parts = getattr(layer, "parts", parts)  # Of a layer of a test.
        for stage, part in zip(stages, parts, strict=True):
            self.blocks[layer.name + part] = stage, slice(None)

    def _curvature_errors(self, state):
        """The errors of the factors and, at the last refresh, the inverses."""
        errors = {}
        for path, (stage, which) in self.blocks.items():
            sides = ["input_factor", "output_factor"]
            for i, side in enumerate(["factor"] if stage.is_norm else sides):
                name = f"{path}/{side}"
                factor = state[f"{name}/moment"] / state[f"{name}/weight"]
                found = [
                    *matrices(factor, stage.is_norm),
                    *refreshed(state, name, stage.is_norm),
                ]
                groups = self.kfac.factors[stage][which]
                expected = [f.M[i] / f.c for f in groups]
                if self.kfac.inverter == "eigen":
                    expected += [f.pair[i] for f in groups]
                else:
                    expected += [f.inverses[i] for f in groups]
                pairs = zip(found, expected, strict=True)
                errors[name] = [element_error(*pair) for pair in pairs]
        factors = {x[: -len("/moment")] for x in state if x.endswith("/moment")}
        assert factors == set(errors)
        return list(itertools.chain(*errors.values()))

    def _stages(self, layer, shape):
        names = ("norm_curvature", "tied")
        options = self.keras_options
        choices = {name: options[name] for name in names if name in options}
        return mirror(layer, shape, **choices)

    def _weights(self):
        return [W for stage in self.net.layers for W in stage.weights()]

    def _compile(self, model):
        options = {"fisher": "empirical", "model": model}
        if self.samples is not None:
            options["fisher"] = "sampled"
            options["likelihood"] = injected(
                self.likelihood, self.samples, **self.likelihood_options
            )
        options |= self.options | self.keras_options
        # Without the defaults' clip, which would hide a wrong scale.
        options = {"momentum": 0.9, "kl_clip": None, **options}
        optimizer = tfkfac.KFAC(**options)
        if self.no_decay:
            optimizer.exclude_from_weight_decay(var_names=self.no_decay)
        model.compile(
            optimizer=optimizer,
            loss=self.loss,
            loss_weights=[self.loss_weight] if self.loss_weight != 1 else None,
            run_eagerly=self.run_eagerly and not self.jit_compile,
            jit_compile=self.jit_compile,
        )

    def _unmasked(self, x):
        """Which positions the first layer does not mask; None for all."""
        if isinstance(self.layers[0], keras.layers.Masking):
            return np.any(x != 0, axis=-1).ravel()
        masks = getattr(self.layers[0], "mask_zero", False)
        return x.ravel() != 0 if masks else None

    def _mirror_step(self, part, weights):
        x = self.x[part]
        x = x if x.dtype.kind == "i" else np.asarray(x, np.float64)
        y = dense_targets(self.loss, self.y[part], self.K)
        w = np.ones(len(y)) if weights is None else np.asarray(weights)
        w = self.loss_weight * np.repeat(w.ravel(), len(y) // w.size)
        keep = self._unmasked(x)
        N = len(y)
        # Keras' tied projection drops the mask of its inputs.
        masks = keep is not None and len(keep) == N
        if masks and not isinstance(self.layers[-1], Projection):
            w, N = w * keep, keep.sum()
        total = {
            "sum": 1,
            "mean_with_sample_weight": w.sum() / self.loss_weight,
        }
        divisor = total.get(self.loss.reduction, N)
        loss = loss_gradient(self.loss)

        def empirical(s):
            terms = s.reshape(-1, self.K)
            g = reference.empirical_gradient(loss, terms, y, w)
            return g.reshape(s.shape)

        def sampled(s):
            terms, targets = s.reshape(-1, self.K), self.samples
            if self.likelihood is tfkfac.Categorical:
                targets = np.eye(self.K)[targets]
            g = reference.sampled_gradient(loss, terms, targets, w)
            return g.reshape(s.shape)

        ridge = 2 * self.output_ridge / len(x)  # Keras takes a batch's mean

        self.kfac.step(
            x,
            lambda s: empirical(s) / divisor + ridge * s,
            empirical if self.samples is None else sampled,
            N,
            keep,
        )


def cross_entropy(**arguments):
    """A loss takes its dtype from `floatx` when it is made."""
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, **arguments
    )


def single(layer, shape, batch=2, **arguments):
    """A case of one update of `layer` below a dense layer of 3 classes."""
    rng = np.random.default_rng(0)
    return Case(
        [layer, keras.layers.Flatten(), keras.layers.Dense(3)],
        x=rng.normal(size=(batch, *shape)),
        y=rng.integers(0, 3, size=batch),
        weights=rng.uniform(0.5, 2, size=batch),
        loss=cross_entropy(),
        options=ONE_UPDATE,
        **arguments,
    )
