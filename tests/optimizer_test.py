"""What a step of the optimizer refuses, and says of it."""

import keras
import pytest
import tensorflow as tf
from classifier import LOSS, RNG, X, Y, compiled, small

import tfkfac


def test_step_without_a_model_says_how_to_attach():
    model = small()
    model.compile(tfkfac.KFAC(0.1), LOSS)
    with pytest.raises(RuntimeError, match="tfkfac.attach"):
        model.fit(X, Y, verbose=0)


def test_loss_without_a_likelihood():
    model, _ = compiled(loss="hinge", fisher="sampled")
    y = RNG.normal(size=(16, 3)).astype("float32")
    with pytest.raises(ValueError, match="'hinge'.*likelihood"):
        model.fit(X, y, verbose=0)
    model, _ = compiled(loss="hinge", fisher="empirical")
    model.fit(X, y, verbose=0)
    model, _ = compiled(loss="hinge", likelihood=tfkfac.Gaussian())
    model.fit(X, y, verbose=0)


def test_several_replicas_are_refused(monkeypatch):
    model, _ = compiled(compile_settings={"run_eagerly": True})
    model.train_on_batch(X, Y)

    class TwoReplicas:
        num_replicas_in_sync = 2

    _, optimizer = compiled()
    monkeypatch.setattr(tf.distribute, "get_strategy", TwoReplicas)
    with pytest.raises(RuntimeError, match="tf.distribute with 2 replicas"):
        optimizer.apply([tf.zeros([4, 5])], [model.variables[0]])


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    with pytest.raises(RuntimeError, match="call tfkfac.init"):
        compiled()


def test_gradients_and_variables_go_together():
    optimizer = tfkfac.KFAC(0.1)
    gradient = tf.zeros([2])
    with pytest.raises(ValueError, match="needs optimizer.build"):
        optimizer.apply([gradient])
    w = keras.Variable([1.0, 2.0])
    with pytest.raises(ValueError, match="given 1 gradients for 2 variables"):
        optimizer.apply([gradient], [w, w])
    optimizer.apply([])
    assert int(optimizer.iterations) == 0


def test_loss_scale_of_embeddings():
    """Their gradients are `IndexedSlices`."""
    start, found = None, []
    for scale in (None, 4.0):
        model = keras.Sequential(
            [
                keras.Input((2,), dtype="int32"),
                keras.layers.Embedding(5, 3),
                keras.layers.Flatten(),
                keras.layers.Dense(3),
            ]
        )
        start = start or model.get_weights()
        model.set_weights(start)
        settings = {"run_eagerly": True}
        model, _ = compiled(
            model, compile_settings=settings, loss_scale_factor=scale
        )
        model.train_on_batch(RNG.integers(0, 5, (16, 2)) * 0 + 1, Y)
        found.append(model.get_weights())
    for plain, scaled in zip(*found):
        assert abs(plain - scaled).max() < 1e-6
