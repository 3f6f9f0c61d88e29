"""What a batch of a model looks like."""

from typing import Any

import keras
import tensorflow as tf


def specs(model: keras.Model, inputs: Any, batch_size: int) -> Any:
    """Returns the `tf.TensorSpec`s of a batch, nested as the model takes them.

    Args:
        model: A built model.
        inputs: Anything with `shape` and `dtype`, nested likewise, the batch
            on the first axis; None for what the model was built for.
        batch_size: Of the batch.

    Raises:
        ValueError: A side is not known.
    """
    if inputs is None:
        inputs = _built_for(model)

    def spec(tensor):
        shape = (batch_size, *tensor.shape[1:])
        if None in shape:
            raise ValueError(
                f"plan: {model.name!r} takes inputs of shape "
                f"{tuple(tensor.shape)}, of which some sides are open: give "
                "inputs=tf.TensorSpec(shape, dtype), nested as the model takes "
                "them."
            )
        return tf.TensorSpec(shape, tensor.dtype)

    return keras.tree.map_structure(spec, inputs)


def _built_for(model):
    inputs = getattr(model, "inputs", None)
    if inputs and isinstance(model, keras.Sequential):
        return inputs[0]
    if inputs:
        return model.input
    shapes = list((model.get_build_config() or {}).values())
    if len(shapes) != 1:
        raise ValueError(
            f"plan: the inputs that {model.name!r} takes are not known: give "
            "inputs=tf.TensorSpec(shape, dtype), nested as the model takes "
            "them."
        )
    # Embeddings turn numbers of any type into integers.
    return keras.tree.map_shape_structure(
        lambda shape: tf.TensorSpec(shape, model.input_dtype), shapes[0]
    )
