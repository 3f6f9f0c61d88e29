"""What the arguments of `KFAC` may be."""

import pytest
from classifier import small

import tfkfac


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"damping": 0}, r"damping=0.*greater than 0"),
        ({"damping": -1.0}, "damping"),
        ({"damping": float("nan")}, "damping"),
        ({"damping": "big"}, "damping='big'.*number or a schedule"),
        ({"momentum": -0.1}, "momentum"),
        ({"factor_decay": 1.0}, "factor_decay"),
        ({"factor_update_period": 0}, "factor_update_period=0.*positive"),
        ({"inverse_update_period": 1.5}, "inverse_update_period"),
        ({"kl_clip": 0}, "kl_clip"),
        ({"fisher": "true"}, "fisher='true'.*sampled"),
        ({"inverter": "svd"}, "inverter='svd'.*cholesky"),
        ({"refresh": "never"}, "refresh"),
        ({"max_skipped_steps": -1}, "max_skipped_steps"),
        ({"skip": ["conv"]}, "no layer 'conv'.*hidden"),
        ({"skip": "logits"}, "list of layer names"),
        ({"likelihood": "categorical"}, "likelihood.*tfkfac.Likelihood"),
        ({"model": "model"}, "keras.Model"),
        ({"clipnorms": 1.0}, "clipnorms"),
        ({"norm_curvature": "dense"}, "norm_curvature='dense'.*unitwise"),
        ({"norm_damping": 0.0}, "norm_damping"),
        ({"max_factor_size": 0}, "max_factor_size"),
    ],
)
def test_bad_arguments_are_named(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tfkfac.KFAC(**{"model": small(), **settings})
