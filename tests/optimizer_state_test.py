"""The configuration and the variables of an optimizer, saved and restored."""

import inspect

import keras
import numpy as np
import pytest
from classifier import LOSS, X, Y, compiled, small

import tfkfac


def test_config_round_trip():
    settings = dict(
        learning_rate=keras.optimizers.schedules.PolynomialDecay(0.1, 10, 0.01),
        damping=0.02,
        momentum=0.8,
        factor_decay=0.9,
        factor_update_period=3,
        inverse_update_period=keras.optimizers.schedules.PolynomialDecay(
            5.0, 10, 1.0
        ),
        fisher="empirical",
        inverter=tfkfac.CholeskyInverter(pi=1.0),
        kl_clip=0.1,
        likelihood=tfkfac.Bernoulli(from_logits=False),
        skip=["hidden"],
        max_skipped_steps=3,
        seed=7,
        weight_decay=1e-4,
        clipnorm=1.0,
        use_ema=True,
    )
    config = tfkfac.KFAC(**settings).get_config()
    restored = tfkfac.KFAC.from_config(config)
    assert restored.get_config() == config
    assert restored.inverter.pi == 1.0
    assert restored.likelihood.from_logits is False
    again = keras.optimizers.deserialize(
        keras.optimizers.serialize(tfkfac.KFAC(**settings))
    )
    assert again.get_config() == config


def test_config_holds_every_argument():
    """None, too: what is left out would come back as the default."""
    parameters = inspect.signature(tfkfac.KFAC.__init__).parameters
    config = tfkfac.KFAC(kl_clip=None).get_config()
    left_out = {
        p.name
        for p in parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in config
    }
    assert left_out == {"model"}
    assert tfkfac.KFAC.from_config(config).kl_clip is None


@pytest.mark.parametrize("name", ["damping", "learning_rate", "likelihood"])
def test_what_cannot_be_serialized_is_named_at_save(name, tmp_path):
    class Own(tfkfac.Categorical):
        pass

    value = Own() if name == "likelihood" else lambda t: 0.1
    model = small()
    optimizer = tfkfac.KFAC(**{"damping": 0.1, name: value, "model": model})
    model.compile(optimizer, LOSS)
    model.train_on_batch(X, Y)
    path = tmp_path / "model.keras"
    with pytest.raises(ValueError, match=f"{name}=.*cannot be serialized"):
        model.save(path)


def test_state_of_another_model_is_refused(tmp_path):
    model, _ = compiled()
    model.train_on_batch(X, Y)
    path = tmp_path / "model.keras"
    model.save(path)
    restored = keras.models.load_model(path)
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    other.compile(restored.optimizer, LOSS)
    with pytest.raises(ValueError, match="hidden/input_factor"):
        tfkfac.attach(other)


def test_saving_again_before_attaching_loses_nothing(tmp_path):
    model, optimizer = compiled()
    model.train_on_batch(X, Y)
    model.save(tmp_path / "a.keras")
    keras.models.load_model(tmp_path / "a.keras").save(tmp_path / "b.keras")
    restored = keras.models.load_model(tmp_path / "b.keras")
    tfkfac.attach(restored)
    saved = restored.optimizer.curvature.state()
    for name, value in optimizer.curvature.state().items():
        np.testing.assert_array_equal(value, saved[name])


def test_variables_are_those_that_build_can_know():
    """The same with and without a model, but for the curvature at the end."""
    _, optimizer = compiled()
    bare = tfkfac.KFAC(0.05, damping=0.1)
    bare.build(optimizer._attached.model.trainable_variables)
    optimizer.build(optimizer._attached.model.trainable_variables)
    names = [[v.name for v in o.variables] for o in (optimizer, bare)]
    names[1] += [v.name for v in optimizer.curvature.variables]
    assert names[0] == names[1]
    stored = [{}, {}]
    for o, store in zip((optimizer, bare), stored):
        o.save_own_variables(store)
    numbers = [[k for k in store if k.isdigit()] for store in stored]
    assert numbers[0] == numbers[1]


def test_schedules_that_cannot_be_restored_are_named_at_save():
    class Own(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.1

    for name in ("damping", "learning_rate", "inverse_update_period"):
        optimizer = tfkfac.KFAC(**{"damping": 0.1, name: Own()})
        with pytest.raises(ValueError, match=f"{name}=.*cannot be serialized"):
            optimizer.get_config()
