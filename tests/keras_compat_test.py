"""What is taken of Keras that is not public: that it is there, and what it
gives. A release of Keras that changes it fails here first."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfkfac import keras_compat

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3)).astype("float32")


def sequential(**options):
    inner = keras.Sequential([layers.Dense(2, name="inner")], name="nested")
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(3, name="first"), inner], **options
    )


# Attributes.


def test_attributes_are_not_tracked():
    layer, held = layers.Dense(2), layers.Dense(2)
    keras_compat.set_untracked(layer, held=held)
    assert layer.held is held and held not in keras_compat.held_layers(layer)
    assert keras_compat.own_attribute(layer, "held") is held
    keras_compat.remove_attribute(layer, "held")
    assert keras_compat.own_attribute(layer, "held") is None
    assert keras_compat.own_attribute(layer, "call") is None  # The class'.


def test_replaced_attributes_come_back():
    """Also after an error; what was the class' is the class' again."""
    layer = layers.Dense(2)
    layer.units = 5
    replaced = keras_compat.replaced(layer, units=7, call="other")
    with pytest.raises(ZeroDivisionError), replaced:
        assert layer.units == 7 and layer.call == "other"
        raise ZeroDivisionError
    assert layer.units == 5
    assert keras_compat.own_attribute(layer, "call") is None


# Layers and models.


def test_layers_below_a_model():
    model = sequential()
    names = [x.name for x in keras_compat.layers_of(model, include_self=False)]
    assert names.index("nested") < names.index("inner") and "first" in names
    assert model in keras_compat.layers_of(model)
    held = [x.name for x in keras_compat.held_layers(model)]
    assert "nested" in held and "inner" not in held
    assert keras_compat.has_listed_layers(model)
    assert not keras_compat.has_listed_layers(model.layers[0])
    assert keras_compat.symbolic_input_shapes(model.layers[0]) == [(None, 3)]
    assert keras_compat.symbolic_input_shapes(layers.Dense(1)) == []


def test_own_variables_are_there_while_frozen():
    model = sequential()
    first = model.layers[0]
    first.trainable = False
    assert first.trainable_variables == []
    own = keras_compat.own_trainable_variables(first)
    assert [v.name for v in own] == ["kernel", "bias"]
    assert keras_compat.own_trainable_variables(model) == []


def test_rematerialized_layers():
    with keras.RematScope(mode="full"):
        assert keras_compat.is_rematerialized(layers.Dense(2))
    assert not keras_compat.is_rematerialized(layers.Dense(2))


class Noting(layers.Layer):
    """Notes the `training` of the call that it is within."""

    def call(self, x):
        self.seen = keras_compat.training_of_context(self)
        return x


def test_training_reaches_the_layers_below():
    layer = Noting()
    model = keras.Sequential([keras.Input((3,)), layer, layers.Dropout(0.5)])
    assert keras_compat.takes_training(model)
    for training in (True, False):
        model(X, training=training)
        assert layer.seen is training

    class Without(keras.Model):
        def call(self, x):
            return x

    assert not keras_compat.takes_training(Without())


def test_added_losses_are_forgotten():
    model = keras.Sequential(
        [keras.Input((3,)), layers.ActivityRegularization(l2=1.0)]
    )
    assert not keras_compat.adds_losses(model)
    model(X)
    assert keras_compat.adds_losses(model)
    keras_compat.clear_losses(model)
    assert not keras_compat.adds_losses(model)


def test_variables_have_their_own_width():
    class Wide(layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(), name="w")

        def call(self, x):
            with keras_compat.full_width():
                self.inside = tf.convert_to_tensor(self.w.value).dtype
            self.outside = tf.convert_to_tensor(self.w.value).dtype
            return x

    layer = Wide(dtype="mixed_float16")
    layer(X)
    assert (layer.inside, layer.outside) == (tf.float32, tf.float16)


def test_masks_are_those_that_keras_sets():
    x = tf.constant(X)
    assert keras_compat.keras_mask(x) is None
    masked = layers.Masking(0.0)(np.zeros([1, 2, 3], "float32"))
    assert not np.any(keras_compat.keras_mask(masked))
    keras_compat.set_mask(x, tf.constant([True, False, True, True]))
    layer = Masked()
    layer(x)
    np.testing.assert_array_equal(layer.mask, [True, False, True, True])


class Masked(layers.Layer):
    supports_masking = True

    def call(self, x, mask=None):
        self.mask = mask
        return x


def test_projections_of_attention():
    layer = layers.MultiHeadAttention(2, 3)
    layer.build((None, 4, 6), (None, 4, 6))
    for name in ("query", "key", "value", "output"):
        found = keras_compat.attention_projection(layer, name)
        assert isinstance(found, layers.EinsumDense) and found.built
    assert keras_compat.attention_projection(layer, "gate") is None


def test_moments_of_batch_normalization():
    layer, moments = layers.BatchNormalization(), []
    with keras_compat.noting_moments(layer, moments):
        layer(X, training=True)
    layer(X, training=True)
    ((mean, variance),) = moments
    np.testing.assert_allclose(np.ravel(mean), X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(np.ravel(variance), X.var(0), rtol=1e-5)
    assert keras_compat.has_stock_moments(layer)

    class Own(layers.BatchNormalization):
        def _moments(self, inputs, mask):
            return super()._moments(inputs, mask)

    assert not keras_compat.has_stock_moments(Own())


def test_groups_that_are_neither_scaled_nor_shifted():
    layer = layers.GroupNormalization(2, epsilon=1e-3)
    x = RNG.normal(size=(3, 5, 4)).astype("float32")
    layer.build(x.shape)
    layer.gamma.assign(np.full(4, 7.0))
    found = keras_compat.group_normalized(layer, tf.constant(x))
    groups = x.reshape(3, 5, 2, 2)
    mean = groups.mean((1, 3), keepdims=True)
    scale = np.sqrt(groups.var((1, 3), keepdims=True) + 1e-3)
    expected = ((groups - mean) / scale).reshape(x.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer(x), 7 * expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_what_a_recurrent_layer_drops(several):
    """One mask for all gates, or one for each."""
    cell = layers.LSTMCell(2, dropout=0.5, implementation=1 + (not several))
    layer = layers.RNN(cell)
    x = tf.ones([4, 5, 3])
    layer.build(x.shape)
    assert keras_compat.drawn_dropout(cell) == [[], []]
    states = layer.get_initial_state(batch_size=4)
    keras_compat.draw_dropout(layer, x, states)
    masks, of_states = keras_compat.drawn_dropout(cell)
    assert len(masks) == (4 if several else 1) and not of_states
    assert all(set(np.unique(mask)) <= {0.0, 2.0} for mask in masks)


# Losses.


def test_compiled_losses_are_replaced():
    model = sequential()
    assert keras_compat.compiled_losses(model) is None
    model.compile("sgd", "mse", loss_weights=0.5)
    compiled = keras_compat.compiled_losses(model)
    model.compute_loss(X, np.zeros([4, 2]), np.ones([4, 2], "float32"))
    seen = []

    def replace(x):
        seen.append((x.loss.name, x.loss_weights))
        return lambda y_true, y_pred, sample_weight=None: tf.constant(6.0)

    keras_compat.replace_losses(compiled, replace)
    found = model.compute_loss(X, np.zeros([4, 2]), np.ones([4, 2], "float32"))
    assert seen == [("mse", 0.5)] and float(found) == 3.0
    smoothed = keras.losses.CategoricalCrossentropy(label_smoothing=0.2)
    assert keras_compat.options_of(smoothed)["label_smoothing"] == 0.2


# Training steps.


def test_the_models_whose_training_step_this_is_within():
    """Not where the loss is one's own, or the step."""
    found = {}

    class Telling(layers.Layer):
        def call(self, x):
            for name, model in models.items():
                is_in = keras_compat.is_in_stock_train_step(model)
                found.setdefault(name, []).append(is_in)
            return x

    class OwnLoss(keras.Sequential):
        def compute_loss(self, *args, **options):
            return super().compute_loss(*args, **options)

    models = {}
    for name, kind in (("stock", keras.Sequential), ("own", OwnLoss)):
        models[name] = kind([keras.Input((3,)), layers.Dense(2), Telling()])
    found.clear()
    for model in models.values():
        model.compile("sgd", "mse", run_eagerly=True)
        model.train_on_batch(X, np.zeros([4, 2]))
    assert found == {"stock": [True, False], "own": [False, False]}
    found.clear()
    models["stock"].compute_loss = models["stock"].compute_loss
    models["stock"].train_on_batch(X, np.zeros([4, 2]))
    models["stock"](X)
    assert found == {"stock": [False, False], "own": [False, False]}


def test_the_loss_scale_around_an_optimizer():
    seen = []

    class Noting(keras.optimizers.SGD):
        def apply(self, *args, **options):
            seen.append(keras_compat.loss_scaling_around(self))
            return super().apply(*args, **options)

    w, inner = keras.Variable([1.0]), Noting(1.0)
    outer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0)
    outer.build([w])
    for gradient in (tf.constant([2.0]), tf.constant([np.inf])):
        outer.apply([gradient], [w])
    inner.apply([tf.constant([0.0])], [w])
    assert seen == [outer, None]


def test_steps_that_a_loss_scale_skips_are_told():
    w, told = keras.Variable([1.0]), []
    outer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(1.0), initial_scale=2.0
    )
    outer.build([w])
    keras_compat.call_after_skipping(
        outer, lambda: told.append(float(outer.dynamic_scale))
    )
    for gradient in (2.0, np.nan):
        outer.apply([tf.constant([gradient])], [w])
    assert told == [1.0]  # After it was halved.


# Optimizers.


def test_state_of_an_optimizer():
    a, b = keras.Variable([1.0, 1.0], name="a"), keras.Variable([1.0], name="b")
    optimizer = keras.optimizers.SGD(
        1.0, use_ema=True, clipnorm=5.0, weight_decay=0.1,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    optimizer.exclude_from_weight_decay([b])
    optimizer.build([a, b])
    assert [keras_compat.index_of(optimizer, v) for v in (a, b)] == [0, 1]
    decayed = [keras_compat.decays(optimizer, v) for v in (a, b)]
    assert decayed == [True, False]
    clipped = keras_compat.clip(optimizer, [tf.constant([6.0, 8.0])])
    np.testing.assert_allclose(clipped, [[3, 4]], rtol=1e-6)
    optimizer.apply([tf.constant([1.0, 2.0]), tf.constant([3.0])], [a, b])
    found = keras_compat.accumulated_gradients(optimizer)
    np.testing.assert_array_equal(found[0], [1, 2])
    np.testing.assert_array_equal(found[1], [3])
    assert keras_compat.trained_variables(optimizer) == [a, b]
    assert keras_compat.calls_of_apply(optimizer) == 1
    assert int(optimizer.iterations) == 0
    pairs = keras_compat.moving_averages(optimizer)
    assert len(pairs) == 2 and pairs[0][0] is a and pairs[0][1].shape == (2,)
    assert keras_compat.has_constant_rate(optimizer)
    decay = keras.optimizers.schedules.PolynomialDecay(0.1, 10)
    assert not keras_compat.has_constant_rate(keras.optimizers.SGD(decay))
    assert keras_compat.accumulated_gradients(keras.optimizers.SGD(decay)) == []


def test_paths_in_state_trees():
    """A path that is set is where the tree has the variable."""
    model = sequential()
    model.compile("sgd", "mse")
    kernel = model.layers[0].kernel
    keras_compat.set_path(kernel, "somewhere/else")
    tree = model.get_state_tree(value_format="numpy_array")
    of_model = tree["trainable_variables"]
    np.testing.assert_array_equal(of_model["somewhere"]["else"], kernel)
    flat = keras_compat.flattened_tree(model, of_model)
    assert set(flat) == {v.path for v in model.trainable_variables}
