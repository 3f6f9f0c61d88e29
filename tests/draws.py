"""Uniform numbers, as the statistics draw them."""

import tensorflow as tf

from tfkfac.capture import likelihoods

COUNT = 20_000


def numbers(count=COUNT, draws=1, update=0, **key):
    return likelihoods.uniforms(
        count,
        draws,
        **{"seed": 0, "stream": 0, **key},
        update=tf.convert_to_tensor(update),
    )
