"""An optimizer and its model: who may train what, and when."""

import numpy as np
import pytest
import tensorflow as tf
from classifier import LOSS, X, Y, compiled, small

import tfkfac


def test_model_without_trainable_variables():
    model = small()
    model.trainable = False
    with pytest.raises(ValueError, match="no trainable variables"):
        tfkfac.KFAC(model=model)


def test_model_taken_over_by_another_optimizer(caplog):
    model, _ = compiled(compile_settings={"run_eagerly": True})
    model.train_on_batch(X, Y)
    new = tfkfac.KFAC(0.1, damping=0.1, model=model)
    assert "takes its place" in caplog.text
    with pytest.raises(RuntimeError, match="another KFAC"):
        model.train_on_batch(X, Y)
    model.compile(new, LOSS)
    model.train_on_batch(X, Y)


def test_update_without_a_forward_pass():
    model, optimizer = compiled()
    model.train_on_batch(X, Y)
    variables = model.trainable_variables
    with pytest.raises(RuntimeError, match="no forward pass"):
        optimizer.apply([tf.ones(v.shape) for v in variables], variables)


def test_a_thawed_layer_is_inverted_at_once():
    model = compiled(inverse_update_period=100)[0]
    for trainable in (True, False, True):
        model.get_layer("hidden").trainable = trainable
        model.compile(model.optimizer, LOSS)
        model.train_on_batch(X, Y)
    inverse = model.optimizer.curvature.state()["hidden/input_factor/inverse"]
    assert np.abs(inverse[0] - np.eye(5)).max() > 0.1


def test_a_refused_save_leaves_the_old_file_whole(tmp_path):
    """And no new one; weights alone can be saved."""
    model, optimizer = compiled(learning_rate=lambda: 0.1)
    path = tmp_path / "old.keras"
    path.write_text("old")
    for name in ("old", "new"):
        with pytest.raises(ValueError, match="learning_rate"):
            model.save(tmp_path / f"{name}.keras")
    assert [p.name for p in tmp_path.iterdir()] == ["old.keras"]
    assert path.read_text() == "old"
    model.save_weights(tmp_path / "all.weights.h5")
    model.compile("sgd", LOSS)
    model.save(path)
