"""`tfkfac.attach`: what it joins, and what it refuses."""

import keras
import numpy as np
import own_models
import pytest
from classifier import LOSS, X, Y, compiled, small

import tfkfac


def test_attach_needs_a_compiled_kfac():
    with pytest.raises(TypeError, match="'model' is not a keras.Model"):
        tfkfac.attach("model")
    model = small()
    with pytest.raises(ValueError, match="not compiled"):
        tfkfac.attach(model)
    model.compile("adam", LOSS)
    with pytest.raises(TypeError, match="Adam"):
        tfkfac.attach(model)


def test_second_attach_is_reported_and_harmless(caplog):
    model, optimizer = compiled()
    model.train_on_batch(X, Y)
    state = optimizer.curvature.state()
    tfkfac.attach(model)
    assert "attached to" in caplog.text
    for name, value in optimizer.curvature.state().items():
        np.testing.assert_array_equal(value, state[name])
    model.train_on_batch(X, Y)


def test_one_optimizer_for_two_models():
    first, optimizer = compiled(small("first"))
    second = small("second")
    second.compile(optimizer, LOSS)
    with pytest.raises(ValueError, match="'first'.*already.*'second'"):
        tfkfac.attach(second)
    with pytest.raises(ValueError, match="not one of the model 'first'"):
        second.fit(X, Y, verbose=0)


def test_the_optimizer_within_a_loss_scale_is_attached():
    model, optimizer = small(), tfkfac.KFAC(0.1)
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer), LOSS)
    tfkfac.attach(model)
    assert optimizer.require_attached().model is model


def test_after_training_failed_for_want_of_it():
    """The blocks of an own layer are found in the first step, whose function
    Keras had made by then."""
    model = keras.Sequential(
        [keras.Input((4,)), own_models.Own(), keras.layers.Dense(3)]
    )
    model.compile(tfkfac.KFAC(0.1), LOSS)
    with pytest.raises(RuntimeError, match="has no model"):
        model.fit(X, Y, verbose=0)
    tfkfac.attach(model)
    model.fit(X, Y, verbose=0)
    assert int(model.optimizer.curvature.updates) == 1


def test_in_a_callback():
    """Keras has made its training function then."""
    model = small()
    model.compile(tfkfac.KFAC(0.1), LOSS)
    attach = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: tfkfac.attach(model)
    )
    model.fit(X, Y, verbose=0, callbacks=[attach])
    assert int(model.optimizer.curvature.updates) == 1
