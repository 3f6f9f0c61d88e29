"""Arguments that are mistaken for others, and what their messages say."""

import inspect
import typing

import keras
import numpy as np
import pytest
from classifier import small

import tfkfac
from tfkfac import arguments


def test_a_model_in_the_place_of_the_rate():
    model = small()
    with pytest.raises(TypeError, match=rf"{model.name}.*KFAC\(model=model\)"):
        tfkfac.KFAC(model)


@pytest.mark.parametrize(
    "name, meant",
    [
        ("lr", "learning_rate"),
        ("dampening", "damping"),
        ("weight_decays", "weight_decay"),
        ("clip_norm", "clipnorm"),
        ("inv_update_steps", "inverse_update_period"),
        ("factor_update_freq", "factor_update_period"),
        ("estimation_mode", "fisher"),
    ],
)
def test_did_you_mean(name, meant):
    expected = rf"KFAC\({name}=...\): there is no .*did you mean {meant}\?"
    with pytest.raises(TypeError, match=expected):
        tfkfac.KFAC(**{name: 0.1})


@pytest.mark.parametrize("name", ["xyzzy", "nesterov", "factors"])
def test_a_name_like_no_other(name):
    with pytest.raises(TypeError) as raised:
        tfkfac.KFAC(**{name: 1})
    assert str(raised.value) == f"KFAC({name}=...): there is no such argument."


def test_what_is_meant_is_there():
    own = inspect.signature(tfkfac.KFAC.__init__).parameters
    meant = {*arguments._ELSEWHERE.values()}
    assert meant <= {*own, *arguments.of_keras()}
    assert not meant & {*arguments._ELSEWHERE}


def test_arguments_of_keras_are_taken():
    assert {"weight_decay", "use_ema", "clipnorm"} <= arguments.of_keras()
    optimizer = tfkfac.KFAC(weight_decay=0.1, use_ema=True, clipnorm=1.0)
    again = tfkfac.KFAC.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()


def test_a_model_of_another_kind_is_named_by_its_type():
    variables = small().trainable_variables
    with pytest.raises(TypeError) as raised:
        tfkfac.KFAC(model=variables)
    assert "was given a list of 4 Variable: K-FAC has to" in str(raised.value)
    with pytest.raises(TypeError, match="keras.Model, and was given a str.$"):
        tfkfac.KFAC(model="model")
    with pytest.raises(TypeError, match="was given a Dense.$"):
        tfkfac.KFAC(model=keras.layers.Dense(3))


@pytest.mark.parametrize(
    "factors, inverses, said",
    [
        (10, 3, True),
        (np.int64(10), np.int64(3), True),
        (10, 10, False),
        (1, 10, False),
        ("auto", 3, False),
    ],
)
def test_inverses_of_the_same_factors_are_remarked_on(
    caplog, factors, inverses, said
):
    tfkfac.KFAC(factor_update_period=factors, inverse_update_period=inverses)
    remark = "inverse_update_period of 10 or more"
    assert (remark in caplog.text) == said


def test_words_are_in_the_types():
    """What `KFAC` accepts, an editor knows."""
    hints = typing.get_type_hints(tfkfac.KFAC.__init__)
    for name, choices in arguments.CHOICES.items():
        assert typing.get_args(hints[name]) == choices


def test_help_has_an_example_that_runs():
    text = inspect.getdoc(tfkfac.KFAC)
    lines = text.splitlines()
    first = next(i for i, x in enumerate(lines) if "keras.Sequential" in x)
    block = [x.strip() for x in lines[first : first + 4]]
    assert block[-1].startswith("model.fit(")
    x, y = keras.ops.ones((4, 64)), keras.ops.zeros((4,))
    exec("\n".join(block), {"keras": keras, "tfkfac": tfkfac, "x": x, "y": y})


def test_an_output_without_a_likelihood_is_named():
    inputs = keras.Input((4,))
    outputs = {
        "good": keras.layers.Dense(2, name="good")(inputs),
        "bad": keras.layers.Dense(2, name="bad")(inputs),
    }
    model = keras.Model(inputs, outputs)
    optimizer = tfkfac.KFAC(fisher="sampled", model=model)
    model.compile(optimizer, {"good": "mse", "bad": "hinge"})
    y = {name: keras.ops.ones((8, 2)) for name in outputs}
    with pytest.raises(ValueError, match="loss 'hinge' of output 'bad'"):
        model.fit(keras.ops.ones((8, 4)), y, verbose=0)


def test_an_assigned_word_is_named():
    optimizer = tfkfac.KFAC(model=small())
    with pytest.raises(ValueError, match=r"KFAC\(damping='x'\)"):
        optimizer.damping = "x"
    with pytest.raises(ValueError, match=r"KFAC\(learning_rate='x'\)"):
        optimizer.learning_rate = "x"
