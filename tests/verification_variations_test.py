"""The same step in other ways: what depends on them is found."""

import classifier
import keras
import pytest
import tensorflow as tf
import verified
from verified import OwnDense, registered

from tfkfac.blocks import DenseBlock
from tfkfac.capture import backpropagation, loss_terms
from tfkfac.verification import variations

DATA = tf.constant(classifier.X), tf.constant(classifier.Y)


def found(model, data=DATA):
    """Returns {check: {where: result}}."""
    check = verified.verification(model)
    findings = variations.check(check.updates_of, model, check._attached, data)
    result: dict = {}
    for f in findings:
        of_check = result.setdefault(f.check, {})
        if f.result == "FAILED" or f.where not in of_check:
            of_check[f.where] = f.result
    return result


def fails(of_check):
    return sorted(path for path, x in of_check.items() if x == "FAILED")


class TimesRows(DenseBlock):
    """Its moments grow with the number of rows once more."""

    def moments(self, uses, product_dtype, dtype):
        moments = super().moments(uses, product_dtype, dtype)
        for moment in moments:
            moment.total = moment.total * moment.rows
        return moments


def test_factor_that_grows_with_the_batch():
    with registered(OwnDense, TimesRows):
        results = found(verified.square())
    assert fails(results["batch twice"]) == ["hidden"]
    assert fails(results["reduction of the loss"]) == []


def test_factors_that_depend_on_the_reduction(monkeypatch):
    monkeypatch.setattr(
        loss_terms, "divisor", lambda terms, dtype: tf.constant(2.0, dtype)
    )
    results = found(verified.square())
    assert fails(results["reduction of the loss"]) == ["hidden", "logits"]
    assert fails(results["loss scale"]) == []


def test_factors_that_depend_on_the_loss_scale(monkeypatch):
    exact = backpropagation.of_training_step
    monkeypatch.setattr(
        backpropagation,
        "of_training_step",
        lambda calls, scale, loss_scale, compute: exact(
            calls, scale, None, compute
        ),
    )
    results = found(verified.square())
    assert fails(results["loss scale"]) == ["hidden", "logits"]
    assert fails(results["batch twice"]) == []


def test_scale_of_a_loss_scale_optimizer():
    model = verified.square()
    outer = keras.optimizers.LossScaleOptimizer(model.optimizer)
    model.compile(outer, classifier.LOSS)
    outer.build(model.trainable_variables)
    results = found(model)
    assert set(results["loss scale"].values()) == {"ok"}


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
def test_the_other_reduction_in_half_precision(reduction):
    """A sum, times the scale of its mean, is more than float16 holds."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = verified.square()
    finally:
        keras.config.set_dtype_policy("float32")
    model.optimizer.build(model.trainable_variables)
    scale = 2.0**15
    if reduction == "sum":
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="sum"
        )
        model.compile(model.optimizer, loss)
        scale = 2.0**5
        model.optimizer.dynamic_scale.assign(scale)
    results = found(model)
    assert fails(results["reduction of the loss"]) == []
    assert float(model.optimizer.dynamic_scale) == scale


def test_what_is_drawn_at_random_is_not_compared():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3),
        ]
    )
    results = found(classifier.compiled(model)[0])
    assert results["batch twice"] == {"": "note"}
