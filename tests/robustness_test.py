"""Degenerate data and damaged factors: nothing non-finite gets through."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from tfkfac.blocks.factored import MAX_FAILURES

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6)).astype("float32")
Y = RNG.integers(0, 3, 16)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make(build=None, **settings):
    model = build() if build else dense_model()
    settings = {"damping": 0.1, "inverse_update_period": 1, **settings}
    optimizer = tfkfac.KFAC(0.05, model=model, **settings)
    model.compile(optimizer, LOSS)
    return model, optimizer


def dense_model():
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, activation="relu", name="hidden"),
            keras.layers.LayerNormalization(name="norm"),
            keras.layers.Dense(3, name="logits"),
        ]
    )


def language_model():
    inputs = keras.Input((5,), dtype="int32")
    tied = keras.layers.ReversibleEmbedding(9, 4, mask_zero=True, name="tied")
    x = keras.layers.Dense(4, name="dense")(tied(inputs))
    return keras.Model(inputs, tied(x, reverse=True))


def all_finite(model, optimizer):
    values = [v.numpy() for v in model.variables + optimizer.variables]
    values += optimizer.curvature.state().values()
    return all(np.isfinite(v).all() for v in values)


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


def damage(optimizer, name, value):
    variable = optimizer.curvature[name]
    matrix = variable.numpy()
    matrix[..., 0, 0] = value
    variable.assign(matrix)


@pytest.mark.parametrize("inverter", ["cholesky", "eigen"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e6])
def test_a_damaged_factor_recovers(inverter, value):
    """It keeps the last good inverse or starts anew, and is counted."""
    model, optimizer = make(inverter=inverter, factor_update_period=2)
    for _ in range(3):  # The next step inverts without a factor update.
        model.train_on_batch(X, Y)
    key = "hidden/input_factor"
    names = [n for n in optimizer.curvature.state() if key in n]
    good = {n: optimizer.curvature.state()[n] for n in names}
    damage(optimizer, f"{key}/moment", value)
    model.train_on_batch(X, Y)
    state = optimizer.curvature.state()
    for name in names:
        if "inverse" in name or "eigen" in name:
            np.testing.assert_array_equal(state[name], good[name], name)
    failures = optimizer.failed_inversions
    assert failures.pop("hidden") == 1 and set(failures.values()) == {0}
    assert state[f"{key}/weight"] == 0  # The average starts anew.
    model.train_on_batch(X, Y)
    assert optimizer.curvature.state()[f"{key}/weight"] > 0
    name = next(n for n in names if "inverse" in n or "vectors" in n)
    assert np.abs(optimizer.curvature.state()[name] - good[name]).max() > 0
    model.train_on_batch(X, Y)
    assert optimizer.failed_inversions["hidden"] == 1
    assert all_finite(model, optimizer)


@pytest.mark.parametrize("inverter", ["cholesky", "eigen"])
def test_plain_gradient_after_too_many_failures(inverter, capfd):
    """As long as the factor is damaged before every inversion."""
    model, optimizer = make(inverter=inverter, momentum=0.0, kl_clip=None)
    model.train_on_batch(X, Y)

    def damaged_step():
        damage(optimizer, "hidden/output_factor/moment", -1e6)
        optimizer.curvature["hidden/output_factor/weight"].assign(1.0)
        model.train_on_batch(X, Y)

    for _ in range(MAX_FAILURES + 2):
        damaged_step()
    kernel = model.get_layer("hidden").kernel
    with tf.GradientTape() as tape:
        loss = LOSS(Y, model(X))
    expected = kernel.numpy() - 0.05 * tape.gradient(loss, kernel.value)
    damaged_step()
    np.testing.assert_allclose(kernel.numpy(), expected, rtol=1e-5)
    assert capfd.readouterr().err.count("hidden: 5 inversions failed") == 1
    assert optimizer.failed_inversions["hidden"] == MAX_FAILURES + 3
    model.train_on_batch(X, Y)
    assert optimizer.failed_inversions["hidden"] == MAX_FAILURES + 3
    assert all_finite(model, optimizer)


@pytest.mark.parametrize("inverter", ["cholesky", "eigen"])
def test_a_damaged_diagonal_factor_recovers(inverter):
    model, optimizer = make(inverter=inverter, factor_update_period=2)
    for _ in range(3):
        model.train_on_batch(X, Y)
    moment = optimizer.curvature["norm/factor/moment"]
    moment.assign(-tf.ones_like(moment))
    model.train_on_batch(X, Y)
    assert optimizer.failed_inversions["norm"] == 1
    model.train_on_batch(X, Y)
    assert optimizer.failed_inversions["norm"] == 1
    assert (moment.numpy() >= 0).all()


@pytest.mark.parametrize("key", ["input_factor", "output_factor"])
def test_a_damaged_weight_of_an_average_recovers(key):
    model, optimizer = make()
    model.train_on_batch(X, Y)
    weight = optimizer.curvature[f"hidden/{key}/weight"]
    weight.assign(float("nan"))
    for _ in range(2):
        model.train_on_batch(X, Y)
    assert weight.numpy() > 0 and all_finite(model, optimizer)


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


def test_retry_with_more_damping():
    """A factor that is a little indefinite is inverted at the second try."""
    model, optimizer = make(factor_update_period=1000, damping=1e-2)
    model.train_on_batch(X, Y)
    name = "logits/output_factor/moment"
    moment = optimizer.curvature[name]
    weight = optimizer.curvature["logits/output_factor/weight"]
    a = optimizer.curvature["logits/input_factor/moment"]
    # tr G = tr A, so that pi = 1: G has -0.2 where sqrt(damping) is 0.1 at
    # first and 0.32 at the second try.
    mean = np.trace(a.numpy()[0]) / a.shape[-1] / weight.numpy()
    diagonal = np.array([-0.2, 0.1, 3 * mean + 0.1]) * weight.numpy()
    moment.assign(np.diag(diagonal)[None])
    model.train_on_batch(X, Y)
    assert optimizer.failed_inversions["logits"] == 0
    inverse = optimizer.curvature.state()["logits/output_factor/inverse"][0]
    expected = 1 / (diagonal / weight.numpy() + np.sqrt(0.1))
    np.testing.assert_allclose(np.diag(inverse), expected, rtol=1e-3)
