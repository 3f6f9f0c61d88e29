"""The same state on all ranks before the first step, or an error."""

import keras
import numpy as np
import pytest
import two_ranks
from keras import layers

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


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"units": 5}, r"0. variable.*kernel: .*\(4, 5\) against .*\(4, 3\)"),
        ({"momentum": 0.8}, "optimizer's momentum: 0.8 against 0.9"),
        ({"activation": "relu"}, "layer's activation: relu against tanh"),
    ],
)
def test_ranks_that_differ_are_named(settings, message):
    with pytest.raises(RuntimeError, match="Rank 2 differs from .*" + message):
        broadcast(model(), model(), model(**settings))


def test_other_losses_are_named():
    a, b = model(), model()
    for m, smoothing in ((a, 0.0), (b, 0.1)):
        loss = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
        m.compile(m.optimizer, loss)
    message = "loss's label_smoothing: 0.1 against 0.0"
    with pytest.raises(RuntimeError, match=message):
        broadcast(a, b)


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
