"""The damping where none is given, and what becomes of it."""

import keras
import numpy as np
import pytest
from keras import layers

import tfkfac
from tfkfac.auto_damping import DAMPING, OF_EMBEDDINGS


def test_a_number_assigned_is_that_of_all_layers():
    optimizer = tfkfac.KFAC()
    found = float(optimizer.damping), float(optimizer.embedding_damping)
    assert found == pytest.approx((DAMPING, OF_EMBEDDINGS))
    optimizer.embedding_damping = 0.5
    assert float(optimizer.damping) == pytest.approx(DAMPING)
    optimizer.damping = 0.25
    assert float(optimizer.embedding_damping) == 0.25
    optimizer = tfkfac.KFAC(embedding_damping=0.5)
    optimizer.damping = 0.25
    assert float(optimizer.embedding_damping) == 0.5


def test_what_was_assigned_is_restored(tmp_path):
    """The configuration has "auto"; the numbers are state."""

    def saved(optimizer):
        model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
        model.compile(optimizer, "mse")
        tfkfac.attach(model)
        model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
        return model

    model = saved(tfkfac.KFAC())
    config = model.optimizer.get_config()
    assert config["damping"] == "auto" and config["embedding_damping"] is None
    model.optimizer.embedding_damping = 0.5
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.optimizer.get_config() == config
    assert float(again.optimizer.embedding_damping) == 0.5
    assert float(again.optimizer.damping) == pytest.approx(DAMPING)
