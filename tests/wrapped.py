"""What tests of wrapped and changed layers begin with."""

import numpy as np
from oracle import cross_entropy

import tfkfac

SETTINGS = {"learning_rate": 0.1, "momentum": 0.9, "damping": 0.1}


RNG = np.random.default_rng(0)


def kfac(model, eager=False, **settings):
    """Compiles a model; returns its optimizer."""
    settings = {**SETTINGS, "fisher": "empirical", **settings}
    optimizer = tfkfac.KFAC(
        model=model, kl_clip=None, inverse_update_period=1, **settings
    )
    model.compile(optimizer, cross_entropy(), run_eagerly=eager)
    return optimizer


def randomized(*variables):
    for v in variables:
        v.assign(RNG.normal(size=v.shape) / 2)
