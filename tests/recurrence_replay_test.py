"""What recurrent layers can do: the rows of each use give back V.

The rows a and g of the statistics are made by loops of their own, V comes from
Keras' loop and its gradients: N V = sum_r a_r g_r^T for each kernel.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkfac
from tfkfac.blocks import recurrent
from tfkfac.convolution import patches

T, D, U, B = 4, 3, 2, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, D))
KEEP = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 1, 0]], bool)
Y = RNG.integers(0, 3, size=B)
LOSS = {"from_logits": True}


def chain(*stack):
    def outputs(inputs):
        for layer in stack:
            inputs = layer(inputs)
        return inputs

    return outputs


def last(layer, *below):
    return lambda: chain(*below, layer())


def stacked(*cells, **options):
    return layers.RNN([cell(U) for cell in cells], **options)


def with_states():
    """The states and the outputs count, and the first ones are given."""
    layer = layers.LSTM(U, return_state=True, return_sequences=True)
    first = layers.Dense(U)

    def outputs(inputs):
        h = first(inputs[:, 0])
        y, h, c = layer(inputs, initial_state=[h, 2 * h])
        return keras.ops.concatenate([y[:, 1], h * c], axis=-1)

    return outputs


def carry_alone():
    layer = layers.LSTM(U, return_state=True)
    return lambda inputs: layer(inputs)[2]


def states_of_cells():
    layer = stacked(layers.LSTMCell, layers.GRUCell, return_state=True)

    def outputs(inputs):
        y, (h, c), *g = layer(inputs)
        return keras.ops.concatenate([y, h * c, *keras.tree.flatten(g)], -1)

    return outputs


def by_time_step():
    wrapped = layers.TimeDistributed(layers.GRU(U))
    again = layers.Reshape((2, 2, D))
    return lambda inputs: layers.Flatten()(wrapped(again(inputs)))


def merged(mode, **options):
    def make():
        layer = layers.Bidirectional(
            layers.LSTM(U, return_sequences=True, **options), merge_mode=mode
        )

        def outputs(inputs):
            y = layer(layers.Masking()(inputs))
            y = y if mode else keras.ops.concatenate(y, axis=-1)
            return layers.Flatten()(y)

        return outputs

    return make


def images(layer, shape=(D, 1)):
    """A layer on the steps as images of one channel."""
    return lambda: chain(layers.Reshape((T, *shape)), layer())


def film_with_states():
    """The states and the outputs count, and the first ones are given."""
    layer = layers.ConvLSTM1D(
        U, 2, padding="same", return_state=True, return_sequences=True
    )

    def outputs(inputs):
        x = layers.Reshape((T, D, 1))(inputs)
        h = keras.ops.tanh(keras.ops.repeat(x[:, 0], U, axis=-1))
        y, h, c = layer(x, initial_state=[h, 2 * h])
        flat = [layers.Flatten()(v) for v in (y[:, 1], h * c)]
        return keras.ops.concatenate(flat, axis=-1)

    return outputs


def film_of_mask():
    """A mask of steps that is given to the call; outputs of 0 where masked."""
    layer = layers.ConvLSTM1D(U, 2, return_sequences=True)
    layer.zero_output_for_mask = True
    keep = tf.constant(KEEP)

    def outputs(inputs):
        return layer(layers.Reshape((T, D, 1))(inputs), mask=keep)

    return outputs


both = {"dropout": 0.4, "recurrent_dropout": 0.4}
CASES = {
    "dropout": last(lambda: layers.LSTM(U, dropout=0.5)),
    "dropout_by_gate": last(lambda: layers.LSTM(U, **both)),
    "gru_dropout": last(lambda: layers.GRU(U, **both)),
    "gru_before_dropout": last(
        lambda: layers.GRU(U, reset_after=False, **both)
    ),
    "simple_dropout": last(lambda: layers.SimpleRNN(U, **both)),
    "implementation": last(
        lambda: layers.RNN(layers.GRUCell(U, implementation=1, dropout=0.3))
    ),
    "no_bias": last(lambda: layers.GRU(U, use_bias=False)),
    "activations": last(
        lambda: layers.LSTM(
            U, activation="elu", recurrent_activation="hard_sigmoid"
        )
    ),
    "unroll": last(lambda: layers.GRU(U, unroll=True), layers.Masking()),
    "stateful": last(lambda: layers.GRU(U, stateful=True)),
    "masked_backwards": last(
        lambda: layers.LSTM(U, go_backwards=True), layers.Masking()
    ),
    "zero_output": last(
        lambda: layers.RNN(layers.GRUCell(U), zero_output_for_mask=True),
        layers.Masking(),
    ),
    "stacked": last(
        lambda: stacked(layers.SimpleRNNCell, layers.LSTMCell, layers.GRUCell),
        layers.Masking(),
    ),
    "stacked_dropout": last(
        lambda: layers.RNN(
            [layers.GRUCell(U), layers.LSTMCell(U, **both)],
            return_sequences=True,
        )
    ),
    "states": with_states,
    "carry": carry_alone,
    "states_of_cells": states_of_cells,
    "time_distributed": by_time_step,
    "bidirectional_concat": merged("concat"),
    "bidirectional_mul": merged("mul", dropout=0.3),
    "bidirectional_none": merged(None),
    "film": images(lambda: layers.ConvLSTM1D(U, 2, dilation_rate=2)),
    "film_dropout": images(lambda: layers.ConvLSTM1D(U, 2, **both)),
    "film_no_dropout": images(lambda: layers.ConvLSTM1D(U, 2, dropout=1.0)),
    "film_activations": images(
        lambda: layers.ConvLSTM1D(
            U,
            2,
            activation="elu",
            recurrent_activation="hard_sigmoid",
            use_bias=False,
        )
    ),
    "film_stateful": images(
        lambda: layers.ConvLSTM2D(U, 2, padding="same", stateful=True),
        (D, 1, 1),
    ),
    "film_bidirectional": images(
        lambda: layers.Bidirectional(
            layers.ConvLSTM1D(U, 2, strides=2, return_sequences=True),
            merge_mode="mul",
        )
    ),
    "film_states": film_with_states,
    "film_mask": film_of_mask,
}


@pytest.fixture
def rows(monkeypatch):
    """Returns what the moments are of: by part, its uses."""
    noted = {}
    original = recurrent.ColumnsBlock.moments

    def moments(self, uses, *args):
        noted[self] = list(uses)
        return original(self, uses, *args)

    monkeypatch.setattr(recurrent.ColumnsBlock, "moments", moments)
    return noted


def model_of(make, **options):
    inputs = keras.Input(batch_shape=(B, T, D))
    y = make()(inputs)
    y = layers.Flatten()(y)
    model = keras.Model(inputs, layers.Dense(3)(y))
    rng = np.random.default_rng(1)
    for v in model.trainable_variables:
        v.assign(rng.normal(size=v.shape) / 2)
    optimizer = tfkfac.KFAC(
        0.01, damping=0.1, model=model, fisher="empirical", **options
    )
    loss = keras.losses.SparseCategoricalCrossentropy(**LOSS)
    model.compile(optimizer, loss, run_eagerly=True)
    return model


def step(model, x):
    """Makes a step; returns V by the id of the variable."""
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, Y, model(x, training=True))
    V = tape.gradient(loss, variables)
    model.optimizer.apply(V, variables)
    return {
        id(v): tf.convert_to_tensor(g).numpy() for v, g in zip(variables, V)
    }


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_rows_give_back_the_gradient(make, rows, float64):
    x = X * KEEP[..., np.newaxis]
    model = model_of(make)
    for _ in range(2):  # A stateful layer goes on from the first batch.
        V = step(model, x)
        found = {}
        for part, uses in rows.items():
            total = sum(_product(part, use) for use in uses)
            for v, u in zip(part.variables, part.from_matrix(total[None])):
                found[id(v)] = found.get(id(v), 0) + u.numpy()
        fallback = model.optimizer._attached.layers.registration.fallback
        assert not fallback and found
        for key, value in found.items():
            np.testing.assert_allclose(value / B, V[key], rtol=1e-9, atol=1e-12)


def _product(part, use):
    """sum_r a_r g_r^T over the rows that count."""
    a, mask = use.inputs, use.mask
    if isinstance(part, recurrent.ConvolutionColumnsBlock):
        mask = mask if mask is None else part.mask_rows(a, mask)
        a = patches.extract(a, part._window())
    a, g = part.input_rows(a)[0], part.output_rows(use.gradient)[0]
    if part.bias is not None:
        a = tf.concat([a, tf.ones_like(a[:, :1])], axis=1)
    if mask is not None:
        a *= tf.cast(tf.reshape(mask, [-1, 1]), a.dtype)
    scale = 1 if use.scale is None else use.scale
    return tf.matmul(a, g, transpose_a=True) * scale
