"""Recurrent layers within models: calls, modes, files, what has no block."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkfac
from tfkfac import analysis

T, D, U, B = 4, 3, 2, 6
RNG = np.random.default_rng(0)
KEEP = RNG.uniform(size=(B, T, 1)) < 0.7
KEEP[:, 0] = True
X = (RNG.normal(size=(B, T, D)) * KEEP).astype("float32")
Y = RNG.integers(0, 3, size=B)
modes = pytest.mark.parametrize(
    "in_graph", [True, False], ids=["graph", "eager"]
)


def model_of(outputs, dtype=None, **options):
    """A model with the same weights, below a Dense layer of 3 classes."""
    keras.utils.clear_session(free_memory=False)
    if dtype:
        keras.config.set_dtype_policy(dtype)
    inputs = keras.Input((T, D))
    model = keras.Model(inputs, layers.Dense(3)(outputs(inputs)))
    rng = np.random.default_rng(1)
    for v in model.trainable_variables:
        v.assign(rng.normal(size=v.shape) / 2)
    settings = {"fisher": "empirical", "damping": 0.1, **options}
    settings.setdefault("inverse_update_period", 1)
    in_graph = settings.pop("in_graph", False)
    xla = settings.pop("jit_compile", False)
    optimizer = tfkfac.KFAC(0.1, model=model, **settings)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, run_eagerly=not in_graph, jit_compile=xla)
    return model


def train(model, steps=2):
    """Returns the factors, in the order of the layers, and the weights."""
    for _ in range(steps):
        model.train_on_batch(X, Y)
    optimizer = model.optimizer
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    state = optimizer.curvature.state()
    found = [v for name, v in state.items() if name.endswith("/moment")]
    return found + [v.numpy() for v in model.trainable_variables]


def assert_equal(found, expected, tolerance=1e-5):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(
            a, b, rtol=tolerance, atol=tolerance * np.abs(b).max()
        )


def masked(inputs):
    below = layers.Bidirectional(
        layers.GRU(U, return_sequences=True, reset_after=False)
    )
    return layers.LSTM(U)(below(layers.Masking()(inputs)))


def simple(inputs):
    return layers.LSTM(U)(layers.Masking()(inputs))


def film(inputs, **options):
    """A recurrent convolution over the features, as if they were places."""
    first = options.get("data_format") == "channels_first"
    images = layers.Reshape((T, 1, D) if first else (T, D, 1))(inputs)
    settings = {"padding": "same", "return_sequences": True} | options
    x = layers.ConvLSTM1D(U, 2, name="own", **settings)(images)
    return keras.ops.mean(x, axis=(1, 3 if first else 2))


each = pytest.mark.parametrize("outputs", [simple, film])


def in_two_calls(inputs):
    """The second call goes on from the states of the first."""
    layer = layers.LSTM(U, return_state=True)
    _, *states = layer(inputs[:, :2])
    return layer(inputs[:, 2:], initial_state=states)[0]


@modes
def test_two_calls_that_hand_on_the_state_are_one(in_graph):
    found = train(model_of(in_two_calls, in_graph=in_graph))
    assert_equal(found, train(model_of(layers.LSTM(U))))


@modes
def test_a_call_that_the_gradient_does_not_go_through(in_graph):
    def both_calls(inputs):
        layer = layers.GRU(U, name="own")
        return layer(inputs) + keras.ops.stop_gradient(layer(2 * inputs))

    def one_call(inputs):
        other = layers.GRU(U, trainable=False, name="other")
        return layers.GRU(U, name="own")(inputs) + other(2 * inputs)

    expected = model_of(one_call)
    own, other = map(expected.get_layer, ("own", "other"))
    other.set_weights(own.get_weights())
    found = train(model_of(both_calls, in_graph=in_graph), 1)
    assert_equal(found, train(expected, 1))


def test_cells_on_each_other_are_layers_on_each_other():
    def of_cells(inputs):
        return layers.RNN([layers.LSTMCell(U), layers.GRUCell(U)])(inputs)

    def of_layers(inputs):
        return layers.GRU(U)(layers.LSTM(U, return_sequences=True)(inputs))

    assert_equal(train(model_of(of_cells)), train(model_of(of_layers)))


def test_a_graph():
    """Masks, Bidirectional and a layer on it, of sampled targets."""
    expected = train(model_of(masked, fisher="sampled"))
    assert_equal(
        train(model_of(masked, fisher="sampled", in_graph=True)), expected
    )


@each
def test_xla(outputs):
    expected = train(model_of(outputs), 1)
    assert_equal(
        train(model_of(outputs, in_graph=True, jit_compile=True), 1), expected
    )


@each
def test_half_precision(outputs):
    """The statistics go over the steps in float32."""
    expected = train(model_of(outputs), 1)
    found = train(model_of(outputs, dtype="mixed_float16"), 1)
    assert_equal(found, expected, 1e-2)


def test_channels_first():
    """Of images T x D with U filters; the factors have the channels last."""
    expected = train(model_of(film), 1)
    first = functools.partial(film, data_format="channels_first")
    assert_equal(train(model_of(first), 1), expected)


def test_a_mask_of_positions_with_channels_first():
    def outputs(inputs):
        images = layers.Masking()(layers.Reshape((T, 2, 1))(inputs[..., :2]))
        layer = layers.ConvLSTM1D(
            2, 2, data_format="channels_first", padding="same", name="own"
        )
        return layers.Flatten()(layer(images))

    with pytest.raises(ValueError, match="own: a mask of .*channels last"):
        model_of(outputs).train_on_batch(X, Y)


def test_dropout_that_is_off():
    """Its gates have factors of their own, also in a call without it."""
    both = {"dropout": 0.5, "recurrent_dropout": 0.5}
    model = model_of(layers.GRU(U, reset_after=False, **both))
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        loss = model.compute_loss(X, Y, model(X))
    model.optimizer.apply(tape.gradient(loss, variables), variables)
    found = model.optimizer.moments()
    for gate in "rh":
        for side in ("kernel/{}/input_factor", "kernel/{}/output_factor"):
            assert np.isfinite(found["gru/" + side.format(gate)][0]).all()
    a, b = (found[f"gru/kernel/{gate}/input_factor"][0] for gate in "zh")
    np.testing.assert_array_equal(a, b)


def test_micro_steps():
    model = model_of(layers.GRU(U), gradient_accumulation_steps=2)
    for part in (slice(0, 3), slice(3, 6)):
        model.train_on_batch(X[part], Y[part])
    found = train(model, 0)
    assert_equal(found, train(model_of(layers.GRU(U)), 1))


@pytest.mark.parametrize("refresh", ["staggered", "drift"])
def test_refresh(refresh):
    model = model_of(simple, refresh=refresh, inverse_update_period=2)
    before = train(model, 0)
    after = train(model, 4)
    assert all(np.isfinite(x).all() for x in after)
    assert all(np.abs(x - y).max() > 0 for x, y in zip(before, after))


@each
def test_resumes_bit_for_bit(tmp_path, outputs):
    model = model_of(outputs, inverse_update_period=3, in_graph=True)
    train(model, 2)
    model.save(tmp_path / "model.keras")
    expected = train(model, 2)
    keras.utils.clear_session(free_memory=False)
    again = keras.models.load_model(tmp_path / "model.keras")
    tfkfac.attach(again)
    for a, b in zip(train(again, 2), expected, strict=True):
        np.testing.assert_array_equal(a, b)


class OwnCell(layers.LSTMCell):
    """What it does is not known."""


class OwnLoop(layers.GRU):
    """Goes over the steps in a way that is not known."""

    def inner_loop(self, *args, **options):
        return super().inner_loop(*args, **options)


def shared_cell(inputs):
    cell = layers.GRUCell(U)
    backwards = layers.RNN(cell, go_backwards=True)
    return layers.RNN(cell)(inputs) + backwards(inputs)


REASONS = {
    "its cell OwnCell is none of Keras' own": lambda x: layers.RNN(OwnCell(U))(
        x
    ),
    "the loop of OwnLoop is not Keras' own": lambda x: OwnLoop(U)(x),
    "it shares a cell with another recurrent layer": shared_cell,
    "the activation of its cell is a layer": layers.SimpleRNN(
        U, activation=layers.LeakyReLU()
    ),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_has_no_block_says_why(reason, capsys):
    model = model_of(REASONS[reason])
    model.optimizer.summary()
    assert f"Adam ({reason})" in capsys.readouterr().out
    before = model.get_weights()
    model.train_on_batch(X, Y)
    for a, b in zip(before, model.get_weights()):
        assert np.abs(a - b).max() > 0


def test_skip_names_the_cell_or_the_layer(capsys):
    for name in ("rnn", "rnn/gru_cell"):
        model = model_of(
            lambda x: layers.RNN(layers.GRUCell(U), name="rnn")(x), skip=[name]
        )
        model.optimizer.summary()
        assert capsys.readouterr().out.count("(named in skip)") == 3


def frozen(*names):
    """A GRU some of whose variables are not trained."""
    layer = layers.GRU(U)
    layer.build((None, T, D))
    for name in names:
        getattr(layer.cell, name).trainable = False
    return layer


@pytest.mark.parametrize(
    "names, factors, plain",
    [
        (["bias"], "3, 6, 2, 6", []),
        # Its rows are of both kernels.
        (["kernel"], "2, 6", ["bias"]),
        (["recurrent_kernel"], "3, 6", ["bias"]),
        (["kernel", "recurrent_kernel"], None, ["bias"]),
    ],
)
def test_frozen_variables(names, factors, plain):
    model = model_of(frozen(*names))
    before = train(model, 0)
    registration = model.optimizer._attached.layers.registration
    described = [block.describe() for block in registration.blocks[:-1]]
    assert described == ([factors] if factors else [])
    assert [v.name for v in registration.fallback] == plain
    after = train(model, 2)
    for a, b in zip(before, after):
        assert np.abs(a - b).max() > 0


def test_analysis_knows_the_kernels():
    model = model_of(layers.GRU(U, reset_after=False))
    train(model, 1)
    spectrum = analysis.eigenvalues(model)
    paths = {"kernel", "recurrent_kernel/zr", "recurrent_kernel/h"}
    assert {f"gru/{path}" for path in paths} | {"dense"} == set(spectrum)
    assert len(spectrum["gru/kernel"]) == (D + 1) * 3 * U
    along = analysis.directions(model, per_layer=2)
    measured = analysis.measure(model, along, [(X, Y)])
    assert np.isfinite([m.curvature for m in measured]).all()
