"""What the arguments of `KFAC` may be."""

import pytest
import tensorflow as tf
from classifier import small

import tfkfac
from tfkfac import settings


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"damping": 0}, r"damping=0.*greater than 0"),
        ({"damping": -1.0}, "damping"),
        ({"damping": float("nan")}, "damping"),
        ({"damping": "big"}, "damping='big'.*number or a schedule"),
        ({"momentum": -0.1}, "momentum"),
        ({"factor_decay": 1.0}, "factor_decay"),
        ({"factor_update_period": 0}, "factor_update_period=0.*positive"),
        ({"factor_update_period": [5]}, r"factor_update_period=\[5\].*posi"),
        ({"inverse_update_period": 1.5}, "inverse_update_period"),
        ({"kl_clip": 0}, "kl_clip"),
        ({"fisher": "true"}, "fisher='true'.*sampled"),
        ({"inverter": "svd"}, "inverter='svd'.*cholesky"),
        ({"refresh": "sometimes"}, "refresh='sometimes'"),
        ({"drift_tolerance": -1}, "drift_tolerance=-1"),
        (
            {"refresh": "staggered", "inverse_update_period": lambda t: 5},
            "refresh='staggered'.*a number",
        ),
        ({"max_skipped_steps": -1}, "max_skipped_steps"),
        ({"skip": ["conv"]}, "no layer 'conv'.*hidden"),
        ({"skip": "logits"}, "list of layer names"),
        ({"likelihood": "categorical"}, "likelihood.*tfkfac.Likelihood"),
        ({"model": "model"}, "keras.Model"),
        ({"clipnorms": 1.0}, "clipnorms"),
        ({"norm_curvature": "dense"}, "norm_curvature='dense'.*unitwise"),
        ({"norm_damping": 0.0}, "norm_damping"),
        ({"max_factor_size": 0}, "max_factor_size"),
        ({"overhead": float("inf")}, "overhead=inf"),
        ({"weight_decay": "no"}, "weight_decay='no'.*at least 0"),
        ({"clipnorm": "no"}, "clipnorm='no'.*greater than 0"),
        ({"use_ema": True, "ema_momentum": "no"}, "ema_momentum='no'"),
        ({"gradient_accumulation_steps": "no"}, "accumulation_steps='no'"),
        ({"gradient_accumulation_steps": float("inf")}, "steps=inf"),
        ({"loss_scale_factor": 0}, "loss_scale_factor=0.*greater than 0"),
        ({"loss_scale_factor": float("nan")}, "loss_scale_factor=nan"),
        ({"seed": 2**70}, "seed=.*below 2..63"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tfkfac.KFAC(**{"model": small(), **arguments})


def checked(choices=None, **changes):
    given = {"strategy": "owner", "likelihood": None, "skip": (),
             "max_factor_size": None, "drift_tolerance": 0.1}  # fmt: skip
    settings.check(choices or {}, **{**given, **changes})


def test_what_is_allowed():
    checked({name: values[0] for name, values in settings.CHOICES.items()})
    checked(strategy=3, max_factor_size=1, drift_tolerance=float("inf"))
    likelihood = tfkfac.Gaussian()
    for of_outputs in (likelihood, [likelihood, None], {"a": likelihood}):
        checked(likelihood=of_outputs, skip=["a", "b"])


@pytest.mark.parametrize(
    "changes",
    [
        {"choices": {"refresh": "sometimes"}},
        {"choices": {"communication_dtype": "bfloat16"}},
        {"strategy": "shared"},
        {"strategy": 0},
        {"likelihood": [tfkfac.Gaussian(), "mse"]},
        {"likelihood": {"a": 1.0}},
        {"skip": None},
        {"max_factor_size": 2.5},
        {"drift_tolerance": -1e-3},
        {"drift_tolerance": float("nan")},
        {"drift_tolerance": "0.1"},
    ],
)
def test_what_is_not_allowed(changes):
    (name,) = changes.get("choices", changes)
    with pytest.raises(ValueError, match=rf"KFAC\({name}="):
        checked(**changes)


def test_turns_need_a_period_of_known_length():
    settings.check_refresh("staggered", 5)
    settings.check_refresh("drift", lambda t: 5)
    with pytest.raises(ValueError, match="refresh='staggered'.*a number"):
        settings.check_refresh("staggered", lambda t: 5)


def test_groups_of_ranks():
    sizes = [settings.group_size(s, 6) for s in ("owner", 2, 3, "replicated")]
    assert sizes == [1, 2, 3, 6]
    assert settings.group_size(4, 1) == 1  # One process divides nothing.
    with pytest.raises(ValueError, match="groups of 4 ranks do not divide 6"):
        settings.group_size(4, 6)


def test_numbers_that_are_not_given():
    def add_variable(shape, initializer, name):
        made.append(name)
        return tf.Variable(initializer(shape, tf.float32))

    made = []
    numbers = {"damping": 0.1, "momentum": 0.0, "factor_decay": 0.0}
    found = settings.hyperparameters(
        add_variable,
        kl_clip=None,
        norm_damping=None,
        embedding_damping=None,
        fallback_learning_rate=None,
        **numbers,
    )
    assert set(found) == set(made) == set(numbers)
    with pytest.raises(ValueError, match="norm_damping=0.*greater than"):
        settings.hyperparameters(
            add_variable,
            kl_clip=None,
            norm_damping=0,
            embedding_damping=None,
            fallback_learning_rate=None,
            **numbers,
        )
    numbers["factor_decay"] = 1
    with pytest.raises(ValueError, match="factor_decay=1.*less than 1"):
        settings.hyperparameters(
            add_variable,
            kl_clip=None,
            norm_damping=None,
            embedding_damping=None,
            fallback_learning_rate=None,
            **numbers,
        )
