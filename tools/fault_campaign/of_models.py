"""Models that change, that are unusual, or that are not what was attached."""

import copy

import keras
import numpy as np
import tensorflow as tf

import tfkfac
from tools.fault_campaign import faults, small
from tools.fault_campaign.small import X, Y


def _moves(model, *layers):
    """Trains; only these layers move, and all is finite."""
    before = {layer.name: layer.get_weights() for layer in model.layers}
    small.fit(model, epochs=2)
    small.assert_finite(model)
    moved = [
        layer.name
        for layer in model.layers
        if any(
            not np.array_equal(a, b)
            for a, b in zip(layer.get_weights(), before[layer.name])
        )
    ]
    assert moved == list(layers), moved
    return model


@faults.fault("models")
def a_frozen_layer(folder):
    model = small.network()
    model.get_layer("hidden").trainable = False
    _moves(small.compiled(model), "logits")


@faults.fault("models")
def a_layer_is_frozen_and_thawed_between_fits(folder):
    model = _moves(small.compiled(), "hidden", "logits")
    for trainable, moving in (
        (False, ["logits"]),
        (True, ["hidden", "logits"]),
    ):
        model.get_layer("hidden").trainable = trainable
        model.compile(model.optimizer, small.loss())
        _moves(model, *moving)


class _Odd(keras.layers.Layer):
    """A weight that no block is for."""

    def build(self, shape):
        self.power = self.add_weight(shape=(shape[-1],), name="power")

    def call(self, x):
        return x * keras.ops.exp(keras.ops.sin(self.power))


@faults.fault("models")
def a_layer_without_a_block(folder):
    """It goes to the fallback, which the report names."""
    model = keras.Sequential(
        [
            keras.Input((6,)),
            _Odd(name="odd"),
            keras.layers.Dense(3, name="logits"),
        ]
    )
    model = _moves(small.compiled(model), "odd", "logits")
    said = []
    model.optimizer.summary(said.append)
    assert "odd" in said[0] and "Adam" in said[0], said


@faults.fault("models")
def a_model_that_is_not_built(folder):
    models = []
    for layers in ([], [keras.Input((6,))]):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [*layers, keras.layers.Dense(4), keras.layers.Dense(3)]
        )
        models.append(small.fit(small.compiled(model), epochs=2))
    small.assert_same(*models, rtol=1e-6)


@faults.fault("models", refused="attached to the model.*one optimizer for each")
def an_optimizer_for_two_models(folder):
    optimizer = tfkfac.KFAC(0.05, model=small.network())
    model = small.network()
    model.compile(optimizer, small.loss())
    tfkfac.attach(model)


@faults.fault("models", refused="KFAC has no model: pass KFAC.model=model")
def an_optimizer_without_a_model(folder):
    small.fit(small.compiled(optimizer=tfkfac.KFAC(0.05)))


@faults.fault(
    "models", refused="KFAC has no model: pass KFAC.model=model.*tfkfac.attach"
)
def an_optimizer_of_a_configuration(folder):
    optimizer = small.compiled().optimizer
    small.fit(
        small.compiled(
            optimizer=type(optimizer).from_config(optimizer.get_config())
        )
    )


@faults.fault("models", refused="not one of the model.*one optimizer for each")
def a_clone_is_compiled_with_the_optimizer_of_the_model(folder):
    model = small.compiled()
    clone = keras.models.clone_model(model)
    clone.compile(model.optimizer, small.loss())
    small.unchanged(clone, lambda: small.fit(clone))


@faults.fault("models")
def a_clone_with_an_optimizer_of_its_own(folder):
    model = small.fit(small.compiled())
    weights = small.weights(model)
    clone = keras.models.clone_model(model)
    _moves(small.compiled(clone), "hidden", "logits")
    np.testing.assert_array_equal(small.weights(model), weights)


@faults.fault("models", refused="KFAC has no model: .*tfkfac.attach.model")
def a_deep_copy_of_the_model(folder):
    model = small.fit(small.compiled())
    other = copy.deepcopy(model)
    small.unchanged(model, lambda: small.fit(other))


@faults.fault("models", refused="attached to another KFAC.*compile it with")
def a_second_optimizer_for_the_model(folder):
    model = small.fit(small.compiled())
    first = model.optimizer
    small.fit(small.compiled(model))
    model.compile(first, small.loss())
    small.unchanged(model, lambda: small.fit(model))


@faults.fault("models")
def all_weights_are_set_between_fits(folder):
    model = small.fit(small.compiled())
    model.set_weights([w + 1 for w in model.get_weights()])
    _moves(model, "hidden", "logits")


@faults.fault("models")
def a_loss_without_a_likelihood(folder):
    """The Fisher is the empirical one."""

    def cosine(y, z):
        return keras.losses.cosine_similarity(keras.ops.one_hot(y[:, 0], 3), z)

    y = Y[:, None]
    models = [
        small.fit(small.compiled(compiles={"loss": cosine}, fisher=f), X, y)
        for f in ("auto", "empirical")
    ]
    small.assert_same(*models)


@faults.fault("models", refused="fisher='sampled'.*pass KFAC.likelihood=")
def a_sampled_Fisher_of_a_loss_without_a_likelihood(folder):  # noqa: N802
    model = small.compiled(
        compiles={"loss": lambda y, z: z[:, 0]}, fisher="sampled"
    )
    small.unchanged(model, lambda: small.fit(model))


@faults.fault("models")
def a_loss_that_is_0(folder):
    model = small.compiled(compiles={"loss": lambda y, z: 0 * z[:, 0]})
    small.unchanged(model, lambda: small.fit(model))
    small.assert_finite(model)


@faults.fault("models", refused="skipped.*(lower|look|Look)")
def a_loss_that_is_NaN(folder):  # noqa: N802
    model = small.compiled(
        compiles={"loss": lambda y, z: z[:, 0] * np.nan}, max_skipped_steps=2
    )
    small.unchanged(model, lambda: small.fit(model, epochs=2))


@faults.fault("models")
def a_layer_called_twice(folder):
    inputs = keras.Input((6,))
    shared = keras.layers.Dense(6, name="shared")
    outputs = keras.layers.Dense(3, name="logits")(shared(shared(inputs)))
    _moves(small.compiled(keras.Model(inputs, outputs)), "shared", "logits")


@faults.fault("models")
def a_layer_that_the_loss_does_not_reach(folder):
    inputs = keras.Input((6,))
    model = keras.Model(
        inputs,
        [
            keras.layers.Dense(3, name="logits")(inputs),
            keras.layers.Dense(2, name="idle")(inputs),
        ],
    )
    model = small.compiled(model, compiles={"loss": [small.loss(), None]})
    before = model.get_layer("idle").get_weights()
    small.fit(model)
    small.assert_finite(model)
    for a, b in zip(before, model.get_layer("idle").get_weights()):
        np.testing.assert_array_equal(a, b)


@faults.fault("models", refused="no trainable variables.*Set .trainable")
def a_model_without_weights_to_train(folder):
    model = small.network()
    model.trainable = False
    small.unchanged(small.compiled(model), lambda: small.fit(model))


@faults.fault("models", refused="tf.distribute with 2 replicas")
def two_replicas(folder):
    cpu = tf.config.list_physical_devices("CPU")[0]
    device = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [device, device])
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = small.compiled()
    small.fit(model)


@faults.fault("models")
def compiled_anew_in_each_mode(folder):
    """Eager, in graphs, by XLA, steps at once: the same weights."""
    models = []
    for compiles in (
        {},
        small.GRAPH,
        {**small.GRAPH, "jit_compile": True},
        {**small.GRAPH, "steps_per_execution": 3},
    ):
        model = small.compiled(compiles=compiles)
        models.append(small.fit(model, epochs=2))
    for model in models[1:]:
        small.assert_same(model, models[0], rtol=1e-4)


@faults.fault("models", refused="KFAC.model=.*must be a keras.Model")
def a_model_that_is_none(folder):
    tfkfac.KFAC(model="model")


@faults.fault("models", refused="is not compiled: call model.compile")
def attached_before_compiled(folder):
    tfkfac.attach(small.network())


@faults.fault("models", refused="optimizer of .* is Adam, not KFAC")
def attached_with_another_optimizer(folder):
    tfkfac.attach(small.compiled(optimizer="adam"))


class _Own(keras.layers.Layer):
    """A product whose block the first step finds."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 4))

    def call(self, x):
        return x @ self.w


def _logits():
    return [keras.layers.Dense(3, name="logits")]


@faults.fault("models")
def attached_after_a_fit_that_failed_without(folder):
    model = keras.Sequential([keras.Input((6,)), _Own(), *_logits()])
    small.compiled(model, tfkfac.KFAC(0.05), small.GRAPH)
    try:
        small.fit(model)
    except RuntimeError as error:
        assert "attach" in str(error)
    tfkfac.attach(model)
    _moves(model, *(layer.name for layer in model.layers))


@faults.fault("models", refused="no attribute 'lr'.*did you mean learning_rate")
def the_rate_is_assigned_by_another_name(folder):
    small.compiled().optimizer.lr = 0.5


class _OwnBlock(tfkfac.KroneckerBlock):
    """A block for inputs [batch, d_in]."""

    def __init__(self, layer):
        super().__init__(layer, layer.w, None, d_in=6, d_out=4)

    def input_rows(self, inputs):
        return inputs[tf.newaxis]

    def output_rows(self, outputs):
        return outputs[tf.newaxis]


@faults.fault("models", refused="of _OwnBlock is to return .groups, rows,")
def rows_of_a_block_with_an_axis_more(folder):
    tfkfac.register(_Own, _OwnBlock)
    layers = [keras.Input((5, 6)), _Own(), keras.layers.Flatten(), *_logits()]
    small.fit(small.compiled(keras.Sequential(layers)), np.stack([X] * 5, 1))


class _Turned(_OwnBlock):
    """Its sizes are those of the transposed kernel."""

    def __init__(self, layer):
        tfkfac.KroneckerBlock.__init__(
            self, layer, layer.w, None, d_in=4, d_out=6
        )


@faults.fault("models", refused="takes its kernel to be .*kernel_from_matrix")
def a_block_of_another_layout(folder):
    tfkfac.register(_Own, _Turned)
    model = keras.Sequential([keras.Input((6,)), _Own(), *_logits()])
    small.fit(small.compiled(model))


@faults.fault("models", refused="StopOnSkippedSteps watches.*leave the call")
def skips_of_another_optimizer_are_watched(folder):
    model = small.compiled(optimizer="adam")
    small.fit(model, callbacks=[tfkfac.callbacks.StopOnSkippedSteps()])


@faults.fault("models", refused="gradients for 4 variables")
def fewer_gradients_than_variables(folder):
    model = small.compiled()
    zeros = [tf.zeros_like(v) for v in model.trainable_variables]
    model.optimizer.apply(zeros[:3], model.trainable_variables)
