"""Recurrent layers: the rows of their steps, and the moments of these."""

import classifier
import keras
import numpy as np
import verified
from keras import layers
from verified import failures

from tfkfac.blocks.columns import ColumnsBlock
from tfkfac.recurrence import replay

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 9, (6, 5))
LABELS = RNG.integers(0, 3, 6)


def recurrent():
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(9, 4, mask_zero=True),
            layers.GRU(3, return_sequences=True, name="gru"),
            layers.LSTM(4, name="lstm"),
            layers.Dense(3),
        ]
    )
    model, _ = classifier.compiled(model)
    return verified.first_step(model, TOKENS, LABELS)


def test_masked_steps_pass():
    report = recurrent()
    assert report.ok, str(report)
    checks = [f.check for f in report.findings if f.result == "ok"]
    assert checks.count("input factor") == checks.count("output factor") == 6


def test_rows_that_are_not_of_the_loop(monkeypatch):
    exact = replay.rows

    def halved(*arguments):
        found = exact(*arguments)
        for of_cell in found:
            for rows in of_cell:
                rows.gradients = rows.gradients / 2
        return found

    monkeypatch.setattr(replay, "rows", halved)
    found = failures(recurrent(), "gradients g")
    assert sorted(found) == ["gru", "lstm"]
    assert "layer's loop" in found["lstm"]


def test_moments_that_are_not_of_the_rows(monkeypatch):
    exact = ColumnsBlock.input_moment

    def doubled(self, *arguments):
        return 2 * exact(self, *arguments)

    monkeypatch.setattr(ColumnsBlock, "input_moment", doubled)
    found = failures(recurrent())
    assert sorted(found) == [
        "gru/kernel",
        "gru/recurrent_kernel",
        "lstm/kernel",
        "lstm/recurrent_kernel",
    ]
    assert "2 times what it should be" in found["lstm/kernel"]
