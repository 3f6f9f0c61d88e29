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
    for value in (0.25, DAMPING, 0.5):
        optimizer.damping = value
        assert dampings(optimizer) == pytest.approx([value, value])


@pytest.mark.parametrize("own", [0.5, OF_EMBEDDINGS, DAMPING])
@pytest.mark.parametrize("given", [True, False])
def test_one_of_embeddings_stays(given, own):
    """Whatever its number is, and what the other one comes by."""
    optimizer = tfkfac.KFAC(**({"embedding_damping": own} if given else {}))
    optimizer.embedding_damping = own
    assert float(optimizer.damping) == pytest.approx(DAMPING)
    for value in (0.5, own, 0.25):
        optimizer.damping = value
    assert dampings(optimizer) == pytest.approx([0.25, own])


def test_float64():
    keras.config.set_floatx("float64")
    for given in ({}, {"damping": 0.5, "embedding_damping": "auto"}):
        optimizer = tfkfac.KFAC(**given)
        for value in (0.1, 0.2):
            optimizer.damping = value
            assert dampings(optimizer) == [value, value]


def test_embeddings_may_follow_a_number():
    optimizer = tfkfac.KFAC(damping=0.5, embedding_damping="auto")
    assert dampings(optimizer) == [0.5, 0.5]
    optimizer.damping = 0.25
    assert dampings(optimizer) == [0.25, 0.25]
    with pytest.raises(ValueError, match="embedding_damping='auto'.*give a"):
        tfkfac.KFAC(damping=lambda t: 0.5, embedding_damping="auto")


def fitted(**given):
    """Returns a model and its optimizer after a step."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile(tfkfac.KFAC(model=model, **given), "mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    return model, model.optimizer


def dampings(optimizer):
    found = optimizer.damping, optimizer.embedding_damping
    return [float(x) for x in found]


ASSIGNED = {
    "all": [("damping", 0.25)],
    "embeddings": [("embedding_damping", 0.5)],
    "embeddings first": [("embedding_damping", 0.5), ("damping", 0.25)],
    "embeddings last": [("damping", 0.25), ("embedding_damping", 0.5)],
    "small again": [("damping", 0.25), ("embedding_damping", OF_EMBEDDINGS)],
    "large": [("damping", DAMPING)],
    "met": [("embedding_damping", 0.125), ("damping", 0.125)],
}


@pytest.mark.parametrize("case", ASSIGNED)
def test_what_was_assigned_is_restored(case, tmp_path):
    """In the configuration as in the state; and so is what it is for."""
    model, optimizer = fitted()
    config = optimizer.get_config()
    assert config["damping"] == "auto" and config["embedding_damping"] is None
    for name, value in ASSIGNED[case]:
        setattr(optimizer, name, value)
    model.save(tmp_path / "model.keras")
    made = [
        tfkfac.KFAC.from_config(optimizer.get_config()),
        keras.models.load_model(tmp_path / "model.keras").optimizer,
    ]
    for _ in range(2):
        for other in made:
            assert dampings(other) == dampings(optimizer)
        for each in (optimizer, *made):
            each.damping = 0.125
            each.damping = 0.0625
    assert int(made[1].iterations) == 1


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
