"""The curvature of two ranks: pooled, gathered, and saved by one of them."""

import keras
import numpy as np
import pytest
import two_ranks
from keras import layers

import tfkfac
from tfkfac import attached_layers
from tfkfac.distributed.shared_curvature import SharedCurvature


def models(number=2):
    """Equal ones, as each process has its own."""
    made = []
    for _ in range(number):
        keras.utils.clear_session(free_memory=False)
        made.append(
            keras.Sequential(
                [
                    keras.Input((4,)),
                    layers.Dense(3, name="first"),
                    layers.Dense(2, name="last"),
                ]
            )
        )
    return made


class Kfac(tfkfac.KFAC):
    """One whose micro-steps can be counted without making them."""

    def advance(self):
        self._iterations.assign_add(1)


def on_ranks(function, size=2, made=None, **settings):
    """Calls function(shared, layers, optimizer, rank) on each rank."""
    made = made or models(size)

    def of_rank(ranks):
        model = made[ranks.rank]
        optimizer = Kfac(name="kfac", **settings)
        optimizer.build(model.trainable_variables)
        model.compile(optimizer, "mse")
        shared = SharedCurvature(optimizer, ranks)
        own = attached_layers.make(optimizer, model, {}, ranks, "name")
        for block in own.registration.blocks:
            if own.distributor.owns(block):  # Tells whose it is.
                for factor in block.factors:
                    factor.weight.assign(1.0 + ranks.rank)
        return function(shared, own, optimizer, ranks.rank)

    return two_ranks.run(size, of_rank)


SIDES = [f"{x}/{y}_factor" for x in ("first", "last")
         for y in ("input", "output")]  # fmt: skip
WEIGHTS = {f"{side}/weight" for side in SIDES}


def weights(state):
    return {k: float(v) for k, v in state.items() if k.endswith("/weight")}


def test_rank_0_saves_what_was_gathered():
    def gather(shared, own, optimizer, rank):
        with pytest.raises(RuntimeError, match="lies on 2 ranks: call optim"):
            optimizer.curvature.to_file()
        shared.gather(own)
        if rank:
            with pytest.raises(RuntimeError, match="gather_curvature"):
                optimizer.curvature.to_save()
            return None
        saved = optimizer.curvature.to_save()
        optimizer.iterations.assign_add(1)  # It is old after an update.
        with pytest.raises(RuntimeError, match="gather_curvature"):
            optimizer.curvature.to_save()
        return saved

    saved, nothing = on_ranks(gather)
    assert nothing is None
    found = weights(saved)
    assert set(found) == WEIGHTS and set(found.values()) == {1.0, 2.0}
    assert "first/input_factor/inverse" in saved and "refresh_needed" in saved


def test_what_is_pooled_waits_for_other_owners():
    def pool(shared, own, optimizer, rank):
        shared.pool(own)
        state = weights(optimizer.curvature.state())
        waiting = optimizer.curvature.waiting()
        shared.forget_what_others_own()
        return state, waiting, optimizer.curvature.waiting()

    found = on_ranks(pool)
    assert found[0][0] == found[1][0] and set(found[0][0]) == WEIGHTS
    for _, waiting, left in found:
        assert waiting and not left


def test_all_invert_where_one_has_to():
    def agree(shared, own, optimizer, rank):
        needed = own.estimator.refresh_needed
        seen = []
        for is_shared, values in (
            (False, [True, False]), (True, [True, False]), (True, [False] * 2),
        ):  # fmt: skip
            shared.is_shared = is_shared
            needed.assign(values[rank])
            shared.agree_on_refresh(own)
            seen.append(bool(needed))
        return seen

    # Before they have begun each is by itself.
    assert on_ranks(agree) == [[True, True, False], [False, True, False]]


def test_all_begin_with_the_state_of_rank_0():
    """Momenta, and of loaded curvature what each owns."""

    def begin(shared, own, optimizer, rank):
        assert not shared.is_shared
        optimizer.momenta[0].assign(np.full([4, 3], 5.0 - rank))
        if rank == 0:
            loaded = {k: np.float32(9) for k in WEIGHTS}
            optimizer.curvature.load(loaded)
        shared.begin(of_ranks[rank], own)
        assert shared.is_shared and not optimizer.curvature.waiting()
        momenta = optimizer.momenta[0].numpy()
        return weights(optimizer.curvature.state()), momenta

    of_ranks = models()
    found = on_ranks(begin, made=of_ranks)
    together = found[0][0] | found[1][0]
    assert together == {k: 9.0 for k in WEIGHTS}
    for of_rank, momenta in found:
        assert len(of_rank) == 2
        np.testing.assert_array_equal(momenta, np.full([4, 3], 5.0))


def test_one_process_has_it_all():
    def alone(shared, own, optimizer, rank):
        assert shared.is_shared
        before = optimizer.curvature.state()
        shared.pool(own)
        shared.gather(own)
        shared.agree_on_refresh(own)
        saved = optimizer.curvature.to_save()
        for name, value in before.items():
            np.testing.assert_array_equal(saved[name], value)
        return list(saved) == list(before)

    assert on_ranks(alone, size=1) == [True]


def test_what_was_gathered_is_old_after_a_micro_step():
    """Also within the window that it was gathered in."""

    def gather(shared, own, optimizer, rank):
        shared.gather(own)
        if rank == 0:
            shared.require_gathered()
        optimizer.advance()
        for refused in (optimizer.curvature.to_save, shared.require_gathered):
            with pytest.raises(RuntimeError, match="gather_curvature"):
                refused()

    on_ranks(gather, gradient_accumulation_steps=3)
