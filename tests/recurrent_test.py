"""Recurrent layers, compared with loops over the steps by hand."""

import numpy as np
import oracle
import pytest
from keras import layers

import tfkfac

T, D, U, B = 4, 3, 2, 3
KINDS = {
    "simple": layers.SimpleRNN,
    "lstm": layers.LSTM,
    "gru": layers.GRU,
    "gru_before": lambda units, **options: layers.GRU(
        units, reset_after=False, **options
    ),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
BACKWARDS = {"return_sequences": True, "go_backwards": True}


def case(layer, *more, sequences=False, masked=False, options=None, **others):
    """Three updates of layers below a Dense one, with masks or without."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3 * B, T, D))
    stack = [layer, *more, layers.Dense(3)]
    if masked:
        keep = rng.uniform(size=(3 * B, T, 1)) < 0.6
        keep[::B, 1:] = True
        x, stack = x * keep, [layers.Masking(), *stack]
    return oracle.Case(
        stack,
        x=x,
        y=rng.integers(0, 3, size=(3 * B, T) if sequences else 3 * B),
        batch=B,
        loss=oracle.cross_entropy(),
        options={
            "learning_rate": 0.1,
            "damping": 0.1,
            "inverse_update_period": 1,
            **(options or {}),
        },
        **others,
    )


def sampled(count):
    """Targets to inject for the sampled Fisher."""
    samples = np.random.default_rng(2).integers(0, 3, size=count)
    return {"samples": samples, "likelihood": tfkfac.Categorical}


@kinds
def test_three_updates_in_a_graph(kind, float64):
    found = case(kind(U), run_eagerly=False)
    assert max(found.run()) < 1e-9


@kinds
def test_three_updates_with_sampled_targets(kind, float64):
    found = case(kind(U), **sampled(B))
    assert max(found.run()) < 1e-9


@kinds
def test_float32(kind):
    found = case(kind(U), options={"learning_rate": 1.0})
    assert max(found.run()) < 1e-5 and found.condition() < 100


@kinds
@pytest.mark.parametrize("sequences", [False, True])
def test_masks(kind, sequences, float64):
    layer = kind(U, return_sequences=sequences)
    found = case(layer, sequences=sequences, masked=True)
    assert max(found.run()) < 1e-9


@pytest.mark.parametrize(
    "lower, upper", [("gru_before", "lstm"), ("simple", "gru")]
)
def test_one_on_another(lower, upper, float64):
    """Backwards, all steps, in a graph, of sampled targets."""
    found = case(
        KINDS[lower](U, **BACKWARDS),
        KINDS[upper](U, return_sequences=True),
        sequences=True,
        run_eagerly=False,
        **sampled(B * T),
    )
    assert max(found.run()) < 1e-9


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize(
    "options", [{"inverter": "eigen"}, {"max_factor_size": 5}]
)
def test_settings(kind, options, float64):
    found = case(KINDS[kind](U), options=options)
    assert max(found.run()) < 1e-9
