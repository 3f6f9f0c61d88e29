"""The same state on all ranks before the first step, or an error."""

import keras
import numpy as np
import pytest
import two_ranks
from keras import layers

import tfkfac
from tfkfac.distributed import sync
from tfkfac.state import Curvature


def model(units=3, rate=0.1, momentum=0.9, activation="tanh", seed=None):
    """A model with a seed generator, compiled with SGD; as in a process of
    its own, by the names."""
    keras.utils.clear_session(free_memory=False)
    made = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(units, activation=activation),
            layers.Dropout(0.5, seed=seed),
        ]
    )
    made.compile(keras.optimizers.SGD(rate, momentum), "mse")
    return made


def broadcast(*models):
    two_ranks.run(
        len(models),
        lambda ranks: sync.broadcast(
            models[ranks.rank], models[ranks.rank].optimizer, ranks
        ),
    )


def test_all_ranks_begin_as_rank_0():
    """With its weights, learning rate and momenta; seeds stay their own."""
    a, b = model(rate=0.1, seed=1), model(rate=0.5, seed=2)
    a.optimizer.build(a.trainable_variables)
    for v in a.optimizer.variables[2:]:
        v.assign(np.full(v.shape, 7.0))
    own = [v.numpy() for v in sync.seeds(b)]
    assert len(own) == 1
    broadcast(a, b)
    for x, y in zip(a.get_weights()[:2], b.get_weights()[:2]):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(a.optimizer.variables, b.optimizer.variables, strict=True):
        np.testing.assert_array_equal(x, y)
    assert float(b.optimizer.learning_rate) == np.float32(0.1)
    assert np.all(b.optimizer.variables[-1] == 7)
    np.testing.assert_array_equal(sync.seeds(b)[0], own[0])


def share(*models):
    two_ranks.run(
        len(models),
        lambda ranks: sync.share_trained(models[ranks.rank].optimizer, ranks),
    )


def test_weights_of_own_loops_are_those_of_rank_0():
    a, b = model(seed=1), model(seed=2)
    for m in (a, b):
        m.optimizer.build(m.trainable_variables)
    a.optimizer.variables[-1].assign(np.full(3, 7.0))
    share(a, b)
    for x, y in zip(a.get_weights()[:2], b.get_weights()[:2]):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(b.optimizer.variables[-1], np.full(3, 7.0))
    b.optimizer.iterations.assign(4)
    with pytest.raises(RuntimeError, match="rank 1 .* 4 and 0 steps: build"):
        share(a, b)
    c = model(units=4)
    c.optimizer.build(c.trainable_variables)
    with pytest.raises(RuntimeError, match="Rank 1 trains variables of other"):
        share(a, c)


def curvatures(*loaded):
    made = [Curvature() for _ in loaded]
    for curvature, values in zip(made, loaded):
        if values is not None:
            curvature.load(values)
    two_ranks.run(
        len(made),
        lambda ranks: sync.broadcast_curvature(made[ranks.rank], ranks),
    )
    return [curvature.waiting() for curvature in made]


def test_curvature_that_rank_0_has_loaded():
    values = {"dense/input_factor/moment": np.ones([1, 2, 2])}
    names = ["dense/input_factor/moment"]
    assert curvatures(values, None) == [names, names]
    assert curvatures(values, values) == [names, names]
    assert curvatures(None, None) == [[], []]
    with pytest.raises(RuntimeError, match="Rank 1 has loaded .* load it on"):
        curvatures(None, values)


def test_normalization_is_that_of_rank_0():
    """Where each rank has adapted to its share of the data."""

    def adapted(scale):
        keras.utils.clear_session(free_memory=False)
        norm = layers.Normalization()
        norm.adapt(scale * np.arange(12.0).reshape(3, 4))
        return keras.Sequential([keras.Input((4,)), norm, layers.Dense(2)])

    models = [adapted(1.0), adapted(5.0)]
    for m in models:
        m.compile("sgd", "mse")
    broadcast(*models)
    x = np.ones((2, 4))
    np.testing.assert_array_equal(*(m.layers[0](x) for m in models))


def test_frozen_weights_are_alike_and_moving_statistics_are_not():
    m = keras.Sequential(
        [keras.Input((4,)), layers.Dense(2), layers.BatchNormalization()]
    )
    m.layers[0].trainable = False
    names = [v.path.split("/")[-1] for v in sync.alike(m)]
    assert names == ["kernel", "bias", "gamma", "beta"]


# Sums over micro-steps.


def in_mid_window(gradient, calls=1, steps=3, weight=1.0):
    """An optimizer that has summed a gradient so often."""
    w = keras.Variable([weight, weight])
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps)
    optimizer.build([w])
    for _ in range(calls):
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [w])
    return optimizer


def joined(*optimizers):
    two_ranks.run(
        len(optimizers),
        lambda ranks: sync.join_sums(optimizers[ranks.rank], ranks),
    )
    return [sync.sums_of_window(o)[0].numpy().tolist() for o in optimizers]


def test_sums_of_the_ranks_become_their_mean():
    found = joined(in_mid_window([1.0, 8.0]), in_mid_window([3.0, -8.0]))
    assert found == [[2.0, 0.0]] * 2


def test_equal_sums_stay_bit_for_bit():
    """The mean of three numbers, summed in float32, may be another."""
    value = np.float32([0.1, 1 / 3])
    found = joined(*[in_mid_window(value) for _ in range(3)])
    assert found == [value.tolist()] * 3


@pytest.mark.parametrize(
    "other", [{"calls": 0}, {"calls": 2}, {"weight": 2.0}, {"calls": 3}]
)
def test_sums_of_another_state_do_not_count(other):
    """Such as those of a rank that has not loaded what rank 0 has."""
    first, stale = in_mid_window([1.0, 8.0]), in_mid_window([3.0, 5], **other)
    assert joined(first, stale) == [[1.0, 8.0]] * 2


def test_ranks_that_round_in_other_ways_count():
    first, other = (
        in_mid_window([1.0, 8.0]),
        in_mid_window([3.0, 5], weight=1.00001),
    )
    assert joined(first, other) == [[2.0, 6.5]] * 2


def test_a_bad_micro_step_of_one_rank_is_one_of_all():
    def optimizer(is_finite, D):
        keras.utils.clear_session(free_memory=False)
        made = tfkfac.KFAC(gradient_accumulation_steps=2)
        made.build([keras.Variable([1.0])])
        made.window_is_finite.assign(is_finite)
        made.window_divisor.assign(D)
        return made

    ranks = [optimizer(True, 4.0), optimizer(False, 8.0)]
    joined(*ranks)
    for made in ranks:
        assert not made.window_is_finite.numpy()
        assert float(made.window_divisor) == 6.0
    ranks = [optimizer(True, 4.0), optimizer(True, 8.0)]
    joined(*ranks)
    assert all(made.window_is_finite.numpy() for made in ranks)


def test_all_begin_with_the_joint_sums():
    models = [model() for _ in range(2)]
    for rank, m in enumerate(models):
        m.compile(keras.optimizers.SGD(gradient_accumulation_steps=2), "mse")
        m.set_weights(models[0].get_weights())
        m.optimizer.build(m.trainable_variables)
        gradients = [np.full(v.shape, rank) for v in m.trainable_variables]
        m.optimizer.apply([keras.ops.cast(g, "float32") for g in gradients])
    broadcast(*models)
    for m in models:
        for total in sync.sums_of_window(m.optimizer):
            np.testing.assert_array_equal(total, np.full(total.shape, 0.5))
