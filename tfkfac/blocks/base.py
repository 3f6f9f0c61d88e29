"""The interface of curvature blocks."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac.factors import Factor
from tfkfac.inverters import Inverter


@dataclasses.dataclass
class Use:
    """What one call of a layer saw.

    Attributes:
        layer: The layer.
        inputs: Its first argument.
        mask: The Keras mask of the inputs, or None.
        pre_activation: s, before the activation.
        gradient: The gradient of the statistics' loss with respect to s; None
            until it is known, or where the loss does not depend on s.
    """

    layer: keras.layers.Layer
    inputs: tf.Tensor
    mask: tf.Tensor | None
    pre_activation: tf.Tensor
    gradient: Any = None


@dataclasses.dataclass
class Moment:
    """The second moment of the rows of one factor, not yet divided.

    Attributes:
        total: The sum over the rows, in the shape of the factor's state.
        rows: The number of rows, a scalar.
    """

    total: tf.Tensor
    rows: tf.Tensor


class CurvatureBlock(abc.ABC):
    """The curvature of one layer: its factors, their inverses, U for V.

    A block of an own layer derives from this class or, for s = W^T a, from
    `KroneckerBlock`, and is made known by `tfkfac.register`.

    Args:
        layer: A built layer.

    Attributes:
        variables: The trainable variables that the block claims.
        factors: Its factors, set by the constructor.
        path: The name of its state, unique within a model; set when the
            model is registered.
    """

    def __init__(self, layer: keras.layers.Layer):
        self.layer = layer
        self.path = layer.name
        self.variables: list[keras.Variable] = []
        self.factors: list[Factor] = []

    @classmethod
    def unsupported(cls, layer: keras.layers.Layer) -> str | None:
        """Returns why this block cannot stand for `layer`; None if it can."""
        del layer
        return None

    @abc.abstractmethod
    def build(
        self, inverter: Inverter, add_state: Callable, dtype: tf.DType
    ) -> None:
        """Makes the state: `add_state(name, initial value) -> tf.Variable`."""

    @abc.abstractmethod
    def moments(
        self, uses: Sequence[Use], product_dtype: tf.DType, dtype: tf.DType
    ) -> list[Moment]:
        """Returns the moment of each factor over all rows of all uses.

        Args:
            uses: Calls of the layer, with their gradients.
            product_dtype: The type in which products run.
            dtype: The type of the result.
        """

    @abc.abstractmethod
    def refresh(self, damping: tf.Tensor) -> None:
        """Inverts the factors as they are."""

    @abc.abstractmethod
    def precondition(
        self, gradients: Sequence[tf.Tensor], damping: tf.Tensor
    ) -> list[tf.Tensor]:
        """Returns U for V, both in the order and shapes of `variables`."""

    def describe(self) -> str:
        """Returns the sizes of the factors, for the coverage report."""
        sizes = [
            f"{f.groups} x {f.dim}" if f.groups > 1 else str(f.dim)
            for f in self.factors
        ]
        return ", ".join(sizes)
