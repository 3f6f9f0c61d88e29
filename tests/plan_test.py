"""`tfkfac.plan`: against the optimizer's state, counts and messages."""

import json
import random
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkfac
from tfkfac.distributed.communicator import LocalCommunicator
from tfkfac.planning.periods import Overheads
from tools import image_models, scaling_prediction
from tools.counting import counted
from trainers.models.transformer import transformer

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def dense():
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4, activation="relu", name="first"),
            layers.Dense(3, use_bias=False, name="second"),
        ]
    )


def equal():
    return keras.Sequential(
        [keras.Input((6,)), *(layers.Dense(6) for _ in range(4))]
    )


def convolutional():
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, padding="same", name="wide"),
            layers.BatchNormalization(),
            layers.SeparableConv2D(6, 3),
            layers.GroupNormalization(2),
            layers.Conv2D(4, 1, groups=2, use_bias=False, name="grouped"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def tokens():
    return transformer(200, blocks=1, width=8, heads=2, hidden=12)


TOKENS = tf.TensorSpec([None, 6], "int32")


@pytest.mark.parametrize(
    "build, settings",
    [
        (dense, {}),
        (
            dense,
            {"inverter": "eigen", "skip": ["first"], "fallback": "gradient"},
        ),
        (convolutional, {}),
        (convolutional, {"norm_curvature": "unitwise"}),
        (convolutional, {"norm_curvature": "full", "inverter": "eigen"}),
        (convolutional, {"norm_curvature": "full", "max_factor_size": 10}),
        (tokens, {}),
        (tokens, {"tied": "balanced", "norm_curvature": "full"}),
    ],
)
def test_bytes_are_those_of_the_state(build, settings):
    """By layer; and over the ranks, but for a flag of one byte."""
    model = build()
    inputs = TOKENS if build is tokens else None
    planned = tfkfac.plan(model, inputs=inputs, ranks=3, **settings)
    curvature = tfkfac.KFAC(model=model, **settings).curvature
    for layer in planned.layers:
        expected = curvature.nbytes(layer.path + "/")
        assert layer.factor_bytes + layer.inverse_bytes == expected, layer.path
        assert bool(expected) == (layer.block != "plain gradient")
    assert curvature.nbytes() - 1 == sum(
        rank.factor_bytes + rank.inverse_bytes for rank in planned.ranks
    )
    assert planned.parameters == sum(x.parameters for x in planned.layers)


def test_flops_by_hand():
    """Two dense layers; of the first no gradient goes on to its inputs."""
    planned = tfkfac.plan(dense(), batch_size=8)
    first, second = planned.layers
    assert first.gradient_flops == 2 * (2 * 8 * 5 * 4)
    assert second.gradient_flops == 3 * (2 * 8 * 4 * 3)
    gradient = first.gradient_flops + second.gradient_flops
    assert planned.step("gradient").flops == gradient
    assert planned.sampled_flops == 2 * 8 * 4 * 3
    assert first.factor_flops == 2 * 8 * (5**2 + 4**2)
    assert second.factor_flops == 2 * 8 * (4**2 + 3**2)
    # A bias adds a row to V, and to A.
    assert first.inversion_flops == 2 * (6**3 + 4**3)
    assert first.preconditioning_flops == 2 * 6 * 4 * (6 + 4)
    assert second.preconditioning_flops == 2 * 4 * 3 * (4 + 3)
    plain = gradient + 2 * 6 * 4 * (6 + 4) + 2 * 4 * 3 * (4 + 3)
    assert planned.step("plain").flops == plain
    factors = plain + first.factor_flops + second.factor_flops + 2 * 8 * 4 * 3
    assert planned.step("factors").flops == factors
    inversions = first.inversion_flops + second.inversion_flops
    assert planned.step("factors and inverses").flops == factors + inversions
    mean = (factors - plain) / 2 + inversions / 6 + plain - gradient
    found = tfkfac.plan(
        dense(), batch_size=8, factor_update_period=2, inverse_update_period=6
    )
    assert found.overhead == pytest.approx(mean / gradient, rel=1e-12)
    empirical = tfkfac.plan(dense(), batch_size=8, fisher="empirical")
    expected = factors - planned.sampled_flops
    assert empirical.step("factors").flops == expected


def test_suggested_periods_meet_the_budget():
    suggested = tfkfac.plan(dense(), batch_size=512, budget=0.1).suggested
    overhead = suggested.pop("overhead")
    assert 0.09 < overhead <= 0.1
    again = tfkfac.plan(dense(), batch_size=512, **suggested)
    assert again.overhead == overhead


def test_flops_of_convolutions_and_attention_by_hand():
    found = {x.path: x for x in tfkfac.plan(convolutional()).layers}
    wide, grouped = found["wide"], found["grouped"]
    batch = 32
    assert wide.gradient_flops == 2 * (2 * batch * 8 * 8 * 9 * 2 * 4)
    # Depthwise, with a kernel for each of 4 channels, then 4 to 6 channels.
    depthwise = found["separable_conv2d/depthwise"]
    assert depthwise.gradient_flops == 3 * (2 * batch * 6 * 6 * 9 * 4)
    pointwise = found["separable_conv2d/pointwise"]
    assert pointwise.gradient_flops == 3 * (2 * batch * 6 * 6 * 4 * 6)
    rows = batch * 6 * 6
    assert pointwise.factor_flops == 2 * rows * (4**2 + 6**2)
    # Two groups, from 3 channels to 2 each.
    assert grouped.gradient_flops == 3 * (2 * rows * 2 * 3 * 2)
    assert grouped.factor_flops == 2 * rows * 2 * (3**2 + 2**2)
    # The input's autocorrelation: 15 of the 25 offsets stand for all; what
    # is taken off at the borders is less than as much again.
    A = wide.factor_flops - 2 * batch * 8 * 8 * 4**2
    inner = 2 * batch * 8 * 8 * 15 * 2**2
    assert inner < A < 2 * inner < 2 * batch * 8 * 8 * 18**2

    planned = tfkfac.plan(tokens(), batch_size=5, inputs=TOKENS)
    rest = planned.step("gradient").flops
    rest -= sum(x.gradient_flops for x in planned.layers)
    # Two products, of 2 heads, 6 by 6 positions, width 4, forward and back.
    assert rest == 3 * 2 * (2 * 5 * 2 * 6 * 6 * 4)
    projection = planned.layers[0]
    assert projection.gradient_flops == 3 * (2 * 5 * 6 * 8 * 200)


def test_flops_are_those_of_tensorflow():
    """The gradient step of ResNet-20, against TensorFlow's profiler."""
    model = image_models.build_model("resnet20")[0]

    @tf.function
    def gradients(x):
        with tf.GradientTape() as tape:
            y = model(x, training=True)
        variables = [v.value for v in model.trainable_variables]
        return tape.gradient(y, variables)

    graph = gradients.get_concrete_function(tf.TensorSpec([4, 32, 32, 3])).graph
    builder = tf.compat.v1.profiler.ProfileOptionBuilder
    options = (
        builder(builder.float_operation())
        .with_accounted_types([".*Conv2D.*", ".*MatMul.*"])
        .with_empty_output()
        .build()
    )
    expected = tf.compat.v1.profiler.profile(graph, options=options)
    planned = tfkfac.plan(model, batch_size=4)
    # The graph has a gradient with respect to the images, which is not run.
    unused = 2 * 4 * 32 * 32 * 9 * 3 * 16
    found = planned.step("gradient").flops
    assert found == expected.total_float_ops - unused
    assert sum(x.gradient_flops for x in planned.layers) == found


def test_resnet50_is_that_of_the_paper():
    """Osawa et al. 2019, section 5.4: 1,017 and 587 MiB, 42.3 % less."""
    model = image_models.build_model("resnet50")[0]
    planned = tfkfac.plan(model)
    full = image_models.register(model, "full")
    state = image_models.state_mib(full)["factors"]
    assert round(state) == 1017
    assert round(planned.dense_bytes / 2**20) == 587
    less = 1 - planned.dense_bytes / 2**20 / state
    assert round(100 * less, 1) == 42.3
    found = image_models.register(model)
    items = image_models.items_of(found)
    assert planned.packed_bytes == sum(4 * i.statistics for i in items)
    assert len(planned.layers) == 107
    # 3 F, but for the gradient with respect to the images.
    forward = scaling_prediction.forward_cost(found.blocks)
    stem = 112 * 112 * 7 * 7 * 3 * 64
    expected = 2 * 32 * (3 * forward - stem)
    assert planned.step("gradient").flops == expected


class OneOfSeveral(LocalCommunicator):
    """A rank among others that do as it does, and send zeros."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size

    def all_reduce(self, tensor, name):
        return self.size * tensor

    def all_to_all(self, tensor, lengths, name):
        own = tf.split(tensor, lengths)[self.rank]
        return tf.tile(own[tf.newaxis], [self.size, 1])

    def all_gather(self, tensor, lengths, name):
        parts = [tf.zeros([n], tensor.dtype) for n in lengths]
        parts[self.rank] = tensor
        return parts

    def gather_objects(self, value):
        return [value] * self.size

    def split(self, members):
        own = next(m for m in members if self.rank in m)
        return OneOfSeveral(own.index(self.rank), len(own))


@pytest.mark.parametrize(
    "build, strategy, half",
    [
        (equal, "owner", False),
        (dense, 2, True),
        (dense, "replicated", False),
        (tokens, "owner", True),
        (tokens, 2, False),
    ],
)
def test_bytes_sent_are_those_of_an_update(build, strategy, half):
    """By the first and the last of 4 ranks, in each kind of step."""
    settings = {
        "strategy": strategy,
        "communication_dtype": "float16" if half else "float32",
    }
    x, y = np.zeros([4, 6], "int32"), np.zeros([4, 6], "int32")
    if build is not tokens:
        x = np.zeros([4, *build().input_shape[1:]], "float32")
        y = y[:, 0]
    keras.utils.clear_session(free_memory=False)
    planned = tfkfac.plan(build(), ranks=4, inputs=tf.constant(x), **settings)
    for rank in (0, 3):
        with counted(OneOfSeveral(rank, 4)) as counting:
            model = build()
            model.compile(
                tfkfac.KFAC(factor_update_period=2, model=model, **settings),
                LOSS,
                run_eagerly=True,
            )
        sent = []
        for _ in range(3):
            before = float(counting.sent)
            model.train_on_batch(x, y)
            sent.append(float(counting.sent) - before)
        expected = planned.ranks[rank].sent
        for found, kind in zip(
            sent, ("factors and inverses", "plain", "factors")
        ):
            assert found == pytest.approx(expected[kind], rel=1e-12), kind
    # What is shared out evenly takes no all-reduce.
    names = {call[0].__name__ for call in counting.traced}
    assert ("all_reduce" in names) == (build is not equal)


def test_periods_for_a_budget():
    # 0.2 is left: 0.2 / 2 and 2 / 20.
    assert Overheads(0.05, 0.2, 2.0).suggest(0.25 + 1e-9) == (2, 20)
    # Inversions are the cheaper part: one period, (0.9 + 0.1) / 0.1.
    assert Overheads(0.0, 0.9, 0.1).suggest(0.1 + 1e-9) == (10, 10)
    assert Overheads(0.0, 0.0, 0.3).suggest(0.1 + 1e-9) == (1, 3)
    assert Overheads(0.0, 0.3, 0.1).suggest(0.5) == (1, 1)
    assert Overheads(0.1, 0.3, 0.1).suggest(0.1) is None
    rng = random.Random(0)
    for _ in range(200):
        plain, budget = rng.random() / 10, 0.1 + rng.random()
        parts = Overheads(plain, 3 * rng.random(), 9 * rng.random())
        p, q = parts.suggest(budget)
        assert parts.mean(p, q) <= budget * (1 + 1e-12) and q % p == 0
        # The budget is used: one p less for each factor update is too much.
        if p > 1 and q == p:
            assert parts.mean(p - 1, p - 1) > budget


def test_the_model_stays_as_it_is():
    """Of a subclass, attached to an optimizer, with a layer with a loop."""

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = layers.Embedding(9, 4)
            self.recurrent = layers.LSTM(3)
            self.out = layers.Dense(2, activity_regularizer="l2")

        def call(self, x):
            return self.out(self.recurrent(self.embedding(x)))

    model = Model()
    x, y = np.ones([4, 5], "int32"), np.zeros([4], "int32")
    model(x)
    alone = tfkfac.plan(model, budget=0.01)
    model.compile(tfkfac.KFAC(model=model), LOSS)
    first = model.train_on_batch(x, y)
    weights, call = model.get_weights(), model.out.__dict__["call"]
    assert tfkfac.plan(model, budget=0.01) == alone
    for before, after in zip(weights, model.get_weights()):
        np.testing.assert_array_equal(before, after)
    assert model.out.__dict__["call"] is call
    assert np.isfinite(model.train_on_batch(x, y)) and np.isfinite(first)
    assert int(model.optimizer.iterations) == 2
    _, recurrent, _ = alone.layers
    assert recurrent.parameters == 4 * 3 * (4 + 3 + 1)
    # Its loops count: five steps of both products and their gradients.
    assert recurrent.gradient_flops == 5 * 3 * 2 * 32 * 12 * (4 + 3)
    assert alone.uncounted == []
    text = str(alone)
    assert "Not counted: " not in text and "EmbeddingBlock" in text
    # U for V alone takes more.
    assert alone.suggested is None and "No periods meet" in text


def test_moments_of_adam_count():
    """Two, beside the weights of their averages and a rate."""
    model = dense()
    first, without = (
        tfkfac.plan(model, skip=["first"], fallback=fallback)
        for fallback in ("adam", "gradient")
    )
    curvature = tfkfac.KFAC(model=model, skip=["first"]).curvature
    found = first.momentum_bytes - without.momentum_bytes
    assert found == curvature.nbytes("first/")


def test_what_has_no_block():
    """A rematerialized layer: its products count, and it has no state."""

    class Remat(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = layers.Dense(4, name="first")
            self.again = keras.remat(self.first)
            self.second = layers.Dense(2, name="second")

        def call(self, x):
            return self.second(self.again(x))

    model = Remat()
    model(np.zeros([3, 7], "float32"))
    planned = tfkfac.plan(model, batch_size=3)
    second, kernel, bias = planned.layers
    assert second.path == "second" and kernel.parameters == 28
    assert kernel.block == bias.block == "Adam"
    assert kernel.factor_bytes == kernel.inverse_bytes == 0
    rest = planned.step("gradient").flops - second.gradient_flops
    # Forward twice, and the kernel's gradient.
    assert rest == 3 * (2 * 3 * 7 * 4)


def test_bad_arguments_are_named():
    class Unknown(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(TypeError, match="not a keras.Model"):
        tfkfac.plan("resnet50")
    with pytest.raises(ValueError, match="not built"):
        tfkfac.plan(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(ValueError, match="inputs=tf.TensorSpec"):
        tfkfac.plan(tokens())
    for settings in (
        {"ranks": 0},
        {"ranks": 1.5},
        {"batch_size": -1},
        {"inverse_update_period": 0},
        {"strategy": "shared"},
        {"norm_curvature": "half"},
        {"inverter": "qr"},
        {"fisher": "exact"},
        {"skip": "first"},
        {"budget": 0},
        {"budget": -0.1},
        {"budget": float("nan")},
        {"max_factor_size": 0},
    ):
        (name,) = settings
        with pytest.raises(ValueError, match=f"{name}="):
            tfkfac.plan(dense(), **settings)
    with pytest.raises(ValueError, match="do not divide 4 ranks"):
        tfkfac.plan(dense(), ranks=4, strategy=3)
    with pytest.raises(ValueError, match="no layer 'third'"):
        tfkfac.plan(dense(), skip=["third"])


def test_command():
    command = [sys.executable, "-m", "tools.plan", "--model=transformer",
               "--vocabulary=50", "--length=4", "--ranks=2", "--budget=0.5",
               "--batch_size=4096", "--json"]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True)
    found = json.loads(run.stdout)
    assert [row["ranks"] for row in found["shares"]] == [2]
    planned = found["plan"]
    assert planned["settings"]["budget"] == 0.5 and planned["suggested"]
    assert planned["layers"][0]["block"] == "TiedEmbeddingBlock"
    by_kind = {s["kind"]: s for s in planned["steps"]}
    assert by_kind["plain"]["sent"] < by_kind["factors"]["sent"]
    factors = [row["factors, MiB"] for row in found["storage"]]
    assert factors[0] <= factors[1] < factors[2]


def test_flops_of_a_batch_in_parts():
    """Of four times the batch, of which a part is taken at a time."""
    model = keras.Sequential(
        [keras.Input((32, 32, 64)), layers.Conv2D(2, 3, padding="same")]
    )
    few, many = (tfkfac.plan(model, batch_size=n) for n in (32, 128))
    assert not many.uncounted
    found = many.layers[0].factor_flops / few.layers[0].factor_flops
    assert found == pytest.approx(4, rel=0.01)
