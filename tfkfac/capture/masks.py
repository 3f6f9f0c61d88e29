"""Masks of layers below those that take the Keras mask off.

    TimeDistributed      calls a layer once a time step, by its `call`
    MultiHeadAttention   takes the masks off its queries, keys and values
    GroupQueryAttention  has masks as arguments, which its projections do not

Within a call of one of them the masks of the layers below stand here; on the
tensors themselves Keras would see them.
"""

import contextlib
import contextvars
import functools
import inspect
import itertools
import types
from collections.abc import Callable, Iterator, Mapping

import keras
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.keras_compat import keras_mask

# By the id of a layer its mask; under None that of whole examples.
_GIVEN: contextvars.ContextVar[Mapping] = contextvars.ContextVar(
    "tfkfac_masks", default=types.MappingProxyType({})
)


def given_to(layer: keras.layers.Layer) -> tf.Tensor | None:
    """Returns the mask of a layer that its container stands for, or None."""
    return _GIVEN.get().get(id(layer))


def of_examples() -> tf.Tensor | None:
    """Returns the mask of the examples of a time step, [batch], or None."""
    return _GIVEN.get().get(None)


def handing_down(layer: keras.layers.Layer, call: Callable) -> Callable:
    """Returns the call of a layer, which hands masks down to those below."""
    layers = keras.layers
    for stock, wrapped in (
        (layers.TimeDistributed, _by_step),
        (layers.MultiHeadAttention, _to_projections),
        (layers.GroupQueryAttention, _to_projections),
    ):
        if isinstance(layer, stock) and type(layer).call is stock.call:
            return functools.partial(wrapped, layer, call)
    return call


@contextlib.contextmanager
def _within(masks: Mapping) -> Iterator[None]:
    token = _GIVEN.set({**_GIVEN.get(), **masks})
    try:
        yield
    finally:
        _GIVEN.reset(token)


def _arguments(call, args, options) -> dict:
    return inspect.signature(call).bind(*args, **options).arguments


def _to_projections(layer, call, *args, **options):
    given = _arguments(call, args, options)
    of_query, of_value = given.get("query_mask"), given.get("value_mask")
    if isinstance(layer, keras.layers.MultiHeadAttention):
        # It takes the tensor's own, and then takes that off.
        of_query = keras_mask(given["query"])
    of_key = given.get("key_mask")
    if of_key is None and given.get("key") is None:
        of_key = of_value
    masks = {
        "query": of_query,
        "gate": of_query,
        "output": of_query,
        "key": of_key,
        "value": of_value,
    }
    below = {
        id(keras_compat.attention_projection(layer, name)): mask
        for name, mask in masks.items()
    }
    with _within(below):
        return call(*args, **options)


def _by_step(layer, call, *args, **options):
    """Has the k-th call of the layer below be that of time step k."""
    mask, below = _arguments(call, args, options).get("mask"), layer.layer
    if mask is None:
        return call(*args, **options)
    call_below = below.call
    steps = itertools.count()

    def one_step(*args, **options):
        step = mask[:, next(steps)]
        whole = {None: step} if step.shape.rank == 1 else {}
        with _within({id(below): step, **whole}):
            return call_below(*args, **options)

    one_step = tf.autograph.experimental.do_not_convert(one_step)
    with keras_compat.replaced(below, call=one_step):
        return call(*args, **options)
