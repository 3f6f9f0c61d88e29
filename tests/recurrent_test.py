"""Recurrent layers, compared with loops over the steps by hand."""

import numpy as np
import oracle
import pytest
from keras import layers

T, D, U, B = 4, 3, 2, 3
KINDS = {
    "simple": layers.SimpleRNN,
    "lstm": layers.LSTM,
    "gru": layers.GRU,
    "gru_before": lambda units, **kwargs: layers.GRU(
        units, reset_after=False, **kwargs
    ),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def case(layer, *more, steps=3, sequences=False, masked=False, **options):
    """Three updates of a layer below a Dense one, with masks or without."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(steps * B, T, D))
    stack = [layer, *more, layers.Dense(3)]
    if masked:
        keep = rng.uniform(size=(steps * B, T, 1)) < 0.6
        keep[::B, 1:] = True
        x, stack = x * keep, [layers.Masking(), *stack]
    y = rng.integers(0, 3, size=(steps * B, T) if sequences else steps * B)
    return oracle.Case(
        stack,
        x=x,
        y=y,
        batch=B,
        loss=oracle.cross_entropy(),
        options={
            "learning_rate": 0.1,
            "damping": 0.1,
            "inverse_update_period": 1,
        },
        **options,
    )


@kinds
@pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
def test_three_updates(kind, eager, float64):
    found = case(kind(U), run_eagerly=eager)
    assert max(found.run()) < 1e-9


@kinds
def test_masked_sequences_backwards(kind, float64):
    layer = kind(U, return_sequences=True, go_backwards=True)
    found = case(
        layer,
        kind(U, return_sequences=True),
        sequences=True,
        run_eagerly=False,
    )
    assert max(found.run()) < 1e-9


@kinds
@pytest.mark.parametrize("sequences", [False, True])
def test_masks(kind, sequences, float64):
    layer = kind(U, return_sequences=sequences)
    found = case(layer, sequences=sequences, masked=True, run_eagerly=False)
    assert max(found.run()) < 1e-9
