"""Degenerate data and damaged factors: nothing non-finite gets through."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from recovery import LOSS, RNG, X, Y, all_finite, make

import tfkfac


def language_model():
    inputs = keras.Input((5,), dtype="int32")
    tied = keras.layers.ReversibleEmbedding(9, 4, mask_zero=True, name="tied")
    x = keras.layers.Dense(4, name="dense")(tied(inputs))
    return keras.Model(inputs, tied(x, reverse=True))


@pytest.mark.parametrize("inverter", ["cholesky", "eigen"])
@pytest.mark.parametrize("curvature", ["diagonal", "full"])
@pytest.mark.parametrize(
    "data",
    [
        (X[:1], Y[:1]),
        (np.zeros_like(X), Y),
        (np.ones_like(X), Y),
        (np.repeat(X[:1], 16, axis=0), Y),
        (X * 1e-20, Y),
        (X * 1e6, Y),
    ],
    ids=["one example", "zeros", "ones", "constant", "tiny", "huge"],
)
def test_degenerate_batches(data, inverter, curvature):
    model, optimizer = make(inverter=inverter, norm_curvature=curvature)
    for _ in range(4):
        model.train_on_batch(*data)
    assert all_finite(model, optimizer)
    assert int(optimizer.skipped_steps) == 0


@pytest.mark.parametrize("target", [1e19, 1e20, 1e25, 3e38])
@pytest.mark.parametrize("kl_clip", ["auto", 1e-3])
def test_a_target_that_the_squares_of_a_step_cannot_hold(target, kl_clip):
    """The step is skipped, or as short as the clip makes it."""
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    optimizer = tfkfac.KFAC(kl_clip=kl_clip, model=net)
    net.compile(optimizer, "mse", run_eagerly=True)
    x, y = RNG.normal(size=(8, 4)), RNG.normal(size=(8, 3))
    bad = y.copy()
    bad[0, 0] = target
    for targets in (y, bad, y, y):
        net.train_on_batch(x, targets)
    values = [*net.get_weights(), *(v.numpy() for v in optimizer.variables)]
    assert all(np.isfinite(value).all() for value in values)
    assert int(optimizer.skipped_steps) == (target > 1e22)


def test_dead_units():
    """A layer whose gradient is zero keeps still and does no harm."""
    model, optimizer = make()
    hidden = model.get_layer("hidden")
    hidden.bias.assign(np.full(5, -100.0))
    before = hidden.kernel.numpy()
    for _ in range(3):
        model.train_on_batch(X, Y)
    np.testing.assert_array_equal(hidden.kernel.numpy(), before)
    assert all_finite(model, optimizer)


def test_zero_gradients():
    model, optimizer = make(momentum=0.0, fisher="empirical")
    before = [w.copy() for w in model.get_weights()]
    model.train_on_batch(X, Y, sample_weight=np.zeros(16))
    for a, b in zip(before, model.get_weights()):
        np.testing.assert_array_equal(a, b)
    model.train_on_batch(X, Y)
    assert all_finite(model, optimizer)


def masked_model():
    inputs = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(9, 4, mask_zero=True, name="tokens")(inputs)
    x = keras.layers.Dense(4, activation="tanh", name="dense")(x)
    return keras.Model(inputs, keras.layers.Dense(9, name="logits")(x))


def test_an_all_masked_batch_leaves_factors_and_weights():
    model, optimizer = make(masked_model, momentum=0.0)
    tokens = RNG.integers(1, 9, (8, 5))
    model.train_on_batch(tokens, tokens)
    weights = model.get_weights()
    state = optimizer.curvature.state()
    empty = np.zeros_like(tokens)
    model.train_on_batch(empty, empty)
    for a, b in zip(weights, model.get_weights()):
        np.testing.assert_array_equal(a, b)
    for name, value in optimizer.curvature.state().items():
        if name.endswith(("/moment", "/weight")):
            np.testing.assert_array_equal(value, state[name], name)
    model.train_on_batch(tokens, tokens)
    assert all_finite(model, optimizer)


def test_token_out_of_range_is_an_error_that_says_so():
    model, _ = make(language_model)
    tokens = np.full((8, 5), 9)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"not in \[0, 9\)"
    ):
        model.train_on_batch(tokens, tokens % 9)


@pytest.mark.parametrize("key", ["input_factor", "output_factor"])
def test_a_damaged_weight_of_an_average_recovers(key):
    model, optimizer = make()
    model.train_on_batch(X, Y)
    weight = optimizer.curvature[f"hidden/{key}/weight"]
    weight.assign(float("nan"))
    for _ in range(2):
        model.train_on_batch(X, Y)
    assert weight.numpy() > 0 and all_finite(model, optimizer)


@pytest.mark.parametrize("kl_clip", ["auto", None])
def test_a_damaged_momentum_begins_anew_and_is_told(kl_clip, capfd):
    model, optimizer = make(kl_clip=kl_clip)
    model.train_on_batch(X, Y)
    optimizer.momenta[0].assign(np.nan * optimizer.momenta[0])
    model.train_on_batch(X, Y)
    assert "a momentum was not finite at update 1" in capfd.readouterr().err
    assert all_finite(model, optimizer) and int(optimizer.skipped_steps) == 0


def test_negative_tokens_count_from_the_end():
    """As Keras looks them up."""
    states = []
    for last in (8, -1):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        model, optimizer = make(language_model)
        tokens = np.array([[1, 2, 8, 8, 3]] * 4)
        inputs = np.where(tokens == 8, last, tokens)
        model.train_on_batch(inputs, tokens)
        states.append(optimizer.curvature.state())
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], name)


def test_factors_of_which_one_is_unknown_leave_the_gradient():
    """All tokens masked at first: the output factor has no rows yet."""
    model, optimizer = make(language_model, momentum=0.0, kl_clip=None)
    kernel = model.get_layer("tied").embeddings
    before, tokens = kernel.numpy(), np.zeros((4, 5), int)
    with tf.GradientTape() as tape:
        loss = LOSS(tokens, model(tokens))
    gradient = tf.convert_to_tensor(tape.gradient(loss, kernel.value))
    model.train_on_batch(tokens, tokens)
    assert optimizer.curvature["tied/output_factor/weight"].numpy() == 0
    np.testing.assert_allclose(
        kernel.numpy() - before, -0.05 * gradient, rtol=1e-4, atol=1e-7
    )


def test_overflow_in_a_micro_step_leaves_the_average():
    model, optimizer = make(gradient_accumulation_steps=2)
    for _ in range(2):
        model.train_on_batch(X, Y)
    names = ["hidden/input_factor/moment", "hidden/input_factor/weight"]
    before = [optimizer.curvature[name].numpy() for name in names]
    for _ in range(2):
        model.train_on_batch(X * 1e20, Y)
    assert int(optimizer.updates) == 2
    for name, value in zip(names, before):
        np.testing.assert_array_equal(optimizer.curvature[name].numpy(), value)
