"""What belongs to the layers of a model: blocks, owners, and when."""

import keras
import numpy as np
import pytest
from keras import layers

import tfkfac
from tfkfac import attached_layers, inverse_schedule
from tfkfac.distributed.communicator import LocalCommunicator


class OneOf(LocalCommunicator):
    """A rank among others, which it does not ask for anything."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size

    def split(self, members):
        (own,) = [m for m in members if self.rank in m]
        return OneOf(own.index(self.rank), len(own))


def make(rank=0, ranks=1, unusable=(), **settings):
    keras.utils.clear_session(free_memory=False)
    model = keras.Sequential(
        [keras.Input((6,))]
        + [layers.Dense(n, name=name) for n, name in ((5, "a"), (4, "b"))]
    )
    model.add(layers.Dense(2, name="c"))
    optimizer = tfkfac.KFAC(**settings)
    why = {id(model.get_layer(name)): "out of reach" for name in unusable}
    made = attached_layers.make(
        optimizer, model, why, OneOf(rank, ranks), "name"
    )
    return made, model, optimizer


@pytest.mark.parametrize(
    "refresh, kind",
    [
        ("periodic", inverse_schedule.InverseSchedule),
        ("staggered", inverse_schedule.StaggeredSchedule),
        ("drift", inverse_schedule.DriftSchedule),
    ],
)
def test_the_schedule_is_that_of_the_setting(refresh, kind):
    made, _, _ = make(refresh=refresh)
    assert type(made.inverse_schedule) is kind
    # The copies of the factors are for drift alone.
    assert bool(made.estimator.inverted) == (refresh == "drift")


def test_layers_without_a_block():
    made, model, _ = make(unusable=["b"], skip=["c"])
    found = [made.has_block(model.get_layer(name)) for name in "abc"]
    assert found == [True, False, False]
    fallback = [v.path[-8:] for v in made.registration.fallback]
    assert fallback == ["b/kernel", "l/b/bias", "c/kernel", "l/c/bias"]
    assert made.registration.reasons == 2 * ["out of reach"] + 2 * [
        "named in skip"
    ]


def test_long_sides_are_diagonal():
    made, _, optimizer = make(max_factor_size=5)
    kinds = {
        b.path: [f.diagonal for f in b.factors]
        for b in made.registration.blocks
    }
    assert kinds == {
        "a": [True, False],  # 7 with the bias, 5.
        "b": [True, False],
        "c": [False, False],
    }
    assert optimizer.curvature["a/input_factor/moment"].shape == [1, 7]


@pytest.mark.parametrize("strategy", ["owner", "replicated", 2])
def test_each_rank_has_what_it_owns(strategy):
    """Factors with one rank, inverses with its group."""
    g = {"owner": 1, "replicated": 4}.get(strategy, strategy)
    owners, holders = {}, {}
    for rank in range(4):
        made, _, optimizer = make(rank, 4, strategy=strategy)
        assert made.distributor.group_size == g
        state = optimizer.curvature.state()
        of_block = {b.path: o for b, o in made.distributor.block_owners.items()}
        assert len(set(of_block.values())) == 3  # One each.
        for path, owner in of_block.items():
            assert owners.setdefault(path, owner) == owner
            has = f"{path}/input_factor/moment" in state
            assert has == (owner == rank)
            if f"{path}/input_factor/inverse" in state:
                holders.setdefault(path, []).append(rank)
    for path, owner in owners.items():
        first = owner - owner % g
        np.testing.assert_array_equal(holders[path], range(first, first + g))
