"""A call of a layer that V went through, with a tape of its own."""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.blocks import LayerCall
from tfkfac.capture.records import Recorded
from tfkfac.products.uses import Use as OperationUse

Array = np.ndarray


@dataclasses.dataclass(eq=False)
class Use:
    """A call of a layer that V went through.

    Attributes:
        call: What the layer saw.
        recorded: What was recorded of it.
        tape: One of this call alone, from the layer's weights to `source`.
        gradient: That of the statistics at `source`, without a loss scale.
    """

    call: LayerCall
    recorded: Recorded
    tape: tf.GradientTape
    gradient: tf.Tensor

    @property
    def source(self) -> tf.Tensor:
        """Returns the pre-activation where it is marked; a layer of one's own
        may add the bias to it afterwards."""
        return self.recorded.source

    def backward(
        self, variables: Sequence[keras.Variable], gradient: tf.Tensor
    ) -> list[tf.Tensor]:
        """Returns J^T g for a gradient shaped as `source`, by variable.

        J is of the pre-activation s with its bias. Marks take no note of the
        pass.
        """
        noted = self.call.saved
        s = noted.shifted if isinstance(noted, OperationUse) else None
        s = self.source if s is None else s
        with keras_compat.replaced(self.recorded, observe=_unnoted):
            found = self.tape.gradient(
                s,
                [keras_compat.tensorflow_variable(v) for v in variables],
                output_gradients=tf.reshape(
                    tf.cast(gradient, s.dtype), s.shape
                ),
                unconnected_gradients="zero",
            )
        return [tf.convert_to_tensor(g) for g in found]


def _unnoted(recorded: Recorded, gradient: tf.Tensor) -> list:
    """As `Recorded.observe`."""
    del recorded, gradient
    return []


def in_float64(tensor) -> Array:
    """Returns a tensor as an array."""
    return tf.cast(tf.convert_to_tensor(tensor), tf.float64).numpy()
