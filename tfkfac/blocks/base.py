"""The interface of curvature blocks."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from tfkfac import keras_compat
from tfkfac.factors import Factor
from tfkfac.inverters import Inverter
from tfkfac.keras_compat import keras_mask

if TYPE_CHECKING:
    from tfkfac.blocks.factored import FactoredBlock


@dataclasses.dataclass
class LayerCall:
    """What one call of a layer saw.

    Attributes:
        layer: The layer.
        inputs: Its first argument.
        mask: The Keras mask of the inputs, or None.
        pre_activation: s, before the activation.
        part: Which of several things that the layer does.
        options: The keyword arguments of the call, `training` among them.
        saved: What its block keeps of the call besides.
        shortcut: What has `input_gradient(gradient)`, the gradient with respect
            to the inputs, where that takes less time than the tape's; or None.
        gradient: That of the statistics' loss with respect to s, up to `scale`;
            None in the forward pass.
        scale: What the gradient is to be multiplied by; None for 1.
    """

    layer: keras.layers.Layer
    inputs: tf.Tensor
    mask: tf.Tensor | None
    pre_activation: tf.Tensor
    part: str = ""
    options: dict = dataclasses.field(default_factory=dict)
    saved: Any = None
    shortcut: Any = None
    gradient: Any = None
    scale: Any = None

    def times_square_of_scale(self, moment: tf.Tensor) -> tf.Tensor:
        """Returns a second moment with `scale` for one without."""
        if self.scale is None:
            return moment
        scale = tf.cast(self.scale, moment.dtype)
        return moment * scale * scale  # The square may not be finite.


@dataclasses.dataclass
class Moment:
    """The second moment of the rows of one factor, not yet divided.

    Attributes:
        total: The sum over the rows, in the shape of the factor's state.
        rows: The number of rows, a scalar.
    """

    total: tf.Tensor
    rows: tf.Tensor

    @staticmethod
    def sum(moments: "Sequence[Moment]") -> "Moment":
        """Returns the moment over the rows of all."""
        totals, rows = zip(*((m.total, m.rows) for m in moments))
        return Moment(*(functools.reduce(tf.add, x) for x in (totals, rows)))


class CurvatureBlock(abc.ABC):
    """The curvature of one layer: its factors, their inverses, U for V.

    A block of an own layer derives from this class or, for s = W^T a, from
    `KroneckerBlock`, and is made known by `tfkfac.register`.

    Args:
        layer: A built layer.

    Attributes:
        variables: The trainable variables that the block claims.
        factors: Its factors, set by the constructor.
        parts: The parts of the layer's uses that it is of.
        damping: The name of the damping that it takes.
        activation_is_last: Whether the layer's call ends in its `activation`,
            so that s is what it gives without. Else s is what it returns.
        path: The name of its state, unique within a model; set when the
            model is registered.
    """

    parts: Sequence[str] = ("",)
    damping = "damping"
    activation_is_last = False

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

    @classmethod
    def unsupported_call(
        cls, layer: keras.layers.Layer, inputs: tf.Tensor
    ) -> str | None:
        """Returns why a call of `layer` cannot be recorded; None if it can.

        Args:
            layer: A built layer that is supported.
            inputs: The first argument of the call.
        """
        del layer, inputs
        return None

    @classmethod
    def for_layer(
        cls, layer: keras.layers.Layer, options: dict
    ) -> "list[CurvatureBlock]":
        """Returns the blocks of a layer: one, unless it does several things.

        Args:
            layer: A built layer.
            options: Settings of the optimizer: `norm_curvature`, `tied`.
        """
        del options
        return [cls(layer)]

    @classmethod
    def record(
        cls,
        layer: keras.layers.Layer,
        call: Callable,
        keep: Callable[[LayerCall], tf.Tensor],
        inputs: tf.Tensor,
        args: tuple,
        options: dict,
    ) -> tf.Tensor:
        """Runs a recorded call of the layer.

        Args:
            layer: The layer.
            call: Its `call` as it was.
            keep: Notes a use and returns its pre-activation, to go on with.
            inputs: The first argument of the call.
            args: The other positional arguments.
            options: The keyword arguments.

        Returns:
            What the call returns.
        """
        activation = keras_compat.own_attribute(layer, "activation")
        if activation is None or not cls.activation_is_last:
            s = call(inputs, *args, **options)
            return keep(LayerCall(layer, inputs, keras_mask(inputs), s))
        linear = keras.activations.linear
        with keras_compat.replaced(layer, activation=linear):
            s = call(inputs, *args, **options)
        return activation(keep(LayerCall(layer, inputs, keras_mask(inputs), s)))

    def is_of(self, use: LayerCall) -> bool:
        """Whether a use counts for this block."""
        return use.layer is self.layer and use.part in self.parts

    def limit_factors(self, size: int) -> None:
        """Keeps less of factors with longer sides than `size`, if it can."""
        del size

    @abc.abstractmethod
    def build_factors(
        self, add_state: Callable, dtype: tf.DType, accumulates: bool
    ) -> None:
        """Makes the state of the factors, on the rank that owns the block.

        Args:
            add_state: `add_state(name, initial value) -> tf.Variable`.
            dtype: Its type.
            accumulates: Whether statistics are summed over micro-steps.
        """

    @abc.abstractmethod
    def build_inverses(
        self, inverter: Inverter, add_state: Callable, dtype: tf.DType
    ) -> list[tf.Variable]:
        """Makes and returns the state of the inverses, all that U takes.

        Args:
            inverter: How the block is inverted, where it lets one do so.
            add_state: `add_state(name, initial value) -> tf.Variable`.
            dtype: Its type.
        """

    @property
    def sums(self) -> list[Factor]:
        """What `moments` returns, in its order; the factors, or more."""
        return self.factors

    @abc.abstractmethod
    def moments(
        self,
        uses: Sequence[LayerCall],
        product_dtype: tf.DType,
        dtype: tf.DType,
    ) -> list[Moment]:
        """Returns the moments over all rows of all uses, one of each sum.

        Args:
            uses: Calls of the layer, with their gradients.
            product_dtype: The type in which products run.
            dtype: The type of the result.
        """

    def combine(
        self, means: Sequence[tf.Tensor], divisors: Sequence[tf.Tensor]
    ) -> list[tf.Tensor]:
        """Returns X of each factor for the means of the moments.

        Args:
            means: The moments divided by N or R; NaN where that is 0.
            divisors: N or R of each.
        """
        del divisors
        return list(means)

    @property
    @abc.abstractmethod
    def members(self) -> "Sequence[FactoredBlock]":
        """What is inverted each by itself, the block or parts of it."""

    @abc.abstractmethod
    def precondition(
        self, gradients: Sequence[tf.Tensor], damping: tf.Tensor
    ) -> list[tf.Tensor]:
        """Returns U for V, both in the order and shapes of `variables`."""

    def describe(self) -> str:
        """Returns the sizes of the factors, for the coverage report."""
        sizes = []
        for factor in self.factors:
            size = f"{factor.dim}"
            if factor.groups > 1:
                size = f"{factor.groups} x {size}"
            sizes.append(size + " diagonal" * factor.diagonal)
        return ", ".join(sizes)

    def describe_method(self, product_dtype: tf.DType) -> str:
        """Returns how the second moments are taken, for the coverage report.

        It is empty where there is one method alone.

        Args:
            product_dtype: The type in which products run.
        """
        del product_dtype
        return ""
