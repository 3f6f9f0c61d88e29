"""The damping where none is given, and what becomes of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkfac
from tfkfac.auto_damping import DAMPING, OF_EMBEDDINGS


def test_a_number_assigned_is_that_of_all_layers():
    optimizer = tfkfac.KFAC()
    assert dampings(optimizer) == pytest.approx([DAMPING, OF_EMBEDDINGS])
    optimizer.embedding_damping = 0.5
    assert float(optimizer.damping) == pytest.approx(DAMPING)
    optimizer.damping = 0.25
    assert float(optimizer.embedding_damping) == 0.25
    optimizer = tfkfac.KFAC(embedding_damping=0.5)
    optimizer.damping = 0.25
    assert float(optimizer.embedding_damping) == 0.5


def fitted(**given):
    """Returns a model and its optimizer after a step."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile(tfkfac.KFAC(model=model, **given), "mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    return model, model.optimizer


def dampings(optimizer):
    found = optimizer.damping, optimizer.embedding_damping
    return [float(x) for x in found]


def test_what_was_assigned_is_restored(tmp_path):
    """In the configuration as in the state."""
    model, optimizer = fitted()
    config = optimizer.get_config()
    assert config["damping"] == "auto" and config["embedding_damping"] is None
    for name, value in (("embedding_damping", 0.5), ("damping", 0.25)):
        setattr(optimizer, name, value)
        expected = dampings(optimizer)
        made = tfkfac.KFAC.from_config(optimizer.get_config())
        assert dampings(made) == expected
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        assert dampings(again.optimizer) == expected
    assert expected == [0.25, 0.25]


@pytest.mark.parametrize(
    "given", [{"embedding_damping": 0.2}, {"damping": 0.3, "kl_clip": None}]
)
def test_variables_are_in_one_order(given, tmp_path):
    """Keras loads them by their places, whatever was given."""
    without = {"kl_clip": None} if "kl_clip" in given else {}
    model, optimizer = fitted(**without)
    expected = dampings(optimizer)
    model.save_weights(tmp_path / "model.weights.h5")
    other, optimizer = fitted(**{"embedding_damping": 0.1, **given})
    other.load_weights(tmp_path / "model.weights.h5")
    assert dampings(optimizer) == expected


@pytest.mark.parametrize(
    "value",
    [tf.Variable(0.1), tf.constant("auto"), None, "Auto"],
    ids=["variable", "tensor", "none", "word"],
)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="KFAC.damping=.*give a number"):
        tfkfac.KFAC(damping=value)
