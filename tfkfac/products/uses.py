"""What a weight goes through, and the operations that it enters."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import tensorflow as tf

from tfkfac.convolution.patches import Window
from tfkfac.products import examples
from tfkfac.products.contraction import Contraction, View

# What leaves the elements of a tensor, and their order, as they are.
SAME = "Identity", "Reshape", "ExpandDims", "Squeeze"
SUMS = "Add", "AddV2", "BiasAdd"


@dataclasses.dataclass(eq=False)
class Use:
    """An operation of a weight with something that depends on the inputs.

    Attributes:
        kind: "product", "convolution", "scale" or "shift".
        operation: Its type, for messages.
        weight: The name of the weight.
        view: The weight as it enters.
        other: The other operand.
        entries: Of its first axis, of one example; None where that is not
            known.
        positions: Where in it the positions of the layer's inputs are, as of
            `examples.positions`.
        contraction: That of a product.
        window: That of a convolution.
        is_marked: Whether the result was replaced by a marked one.
        shift: The name of a weight that is added to the result.
        shifted: The result with that added.
        consumers: What else takes the result, for messages.
    """

    kind: str
    operation: str
    weight: str
    view: View
    other: tf.Tensor
    entries: int | None = None
    positions: str | None = None
    contraction: Contraction | None = None
    window: Window | None = None
    is_marked: bool = False
    shift: str | None = None
    shifted: tf.Tensor | None = None
    consumers: list[str] = dataclasses.field(default_factory=list)

    @property
    def order(self) -> tuple[int, ...]:
        """Returns, of a product, the axes of the kernel in the order of V."""
        return () if self.contraction is None else self.contraction.order()

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Returns (groups, d_in, d_out) of a product or convolution."""
        if self.contraction is not None:
            return self.contraction.sizes(self.view.shape)
        if self.window is None:
            return 1, 1, 1
        *space, c_in, c_out = self.view.shape
        groups = self.other.shape[-1] // c_in
        return groups, math.prod(space) * c_in, c_out // groups

    def mask(self, mask: tf.Tensor) -> tf.Tensor | None:
        """Returns the mask of the inputs as one of the operand's first axes;
        None where it is none."""
        if mask.shape.rank == 1:
            return mask if self.entries == 1 else None
        if self.positions == examples.ROWS:
            return tf.reshape(mask, [-1])
        return mask if self.positions == examples.AXES else None


def passed_on(view, kind, place, inputs, outputs) -> View | None:
    """Returns the view after what leaves the elements as they are."""
    result = outputs[0] if outputs else None
    if kind in SUMS and len(inputs) == 2:
        other = inputs[1 - place]  # As the 1 of 1 + gamma.
        is_number = tf.get_static_value(other) is not None
        return view if is_number and other.shape.rank == 0 else None
    if place != 0 or result is None:
        return None
    if kind == "Identity" or (kind == "Cast" and result.dtype.is_floating):
        return view
    if kind in SAME:
        shape = result.shape
        return view.reshaped(tuple(shape)) if shape.is_fully_defined() else None
    if kind == "Transpose":
        order = tf.get_static_value(inputs[1])
        if order is not None:
            return view.transposed(tuple(int(i) for i in order))
    return None


def window(attributes: Mapping, view: View, x: tf.Tensor) -> Window | None:
    """Returns what a convolution of x sees; None where it has no block.

    Channels have to come last, in x and in the kernel, as a `ConvolutionBlock`
    takes them.
    """
    last = attributes.get("data_format") in (None, "NHWC", "NDHWC")
    padding = attributes["padding"].lower()
    known = padding in ("same", "valid") and x.shape[-1] is not None
    if not (last and known and view.is_flat):
        return None
    return Window(
        view.shape[:-2],
        tuple(attributes["strides"][1:-1]),
        tuple(attributes["dilations"][1:-1]),
        padding,
    )


def is_last(attributes):
    """Whether a bias is added along the last axis."""
    return attributes.get("data_format") in (None, "NHWC")


def can_join(use, view, result) -> bool:
    """Whether a shift has one element for each output of a product or scale.

    Of a product the last axes of the result are those that remain of the
    kernel, in its order.
    """
    tail = stripped(view.shape)
    if not view.is_flat:
        return False
    if use.kind == "scale":
        same = result.shape[1:].as_list() == use.other.shape[1:].as_list()
        return same and tail == stripped(use.view.shape)
    if use.kind == "shift":
        return False
    d_out = use.view.shape[-1]
    if use.contraction is not None:
        found = use.contraction
        _, _, d_out = found.sizes(use.view.shape)
        if found.groups or not found.outputs.endswith(found.remaining):
            return False
    last = result.shape.as_list()[result.shape.rank - len(tail) :]
    return tuple(last) == tail and math.prod(tail) == d_out


def stripped(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns a shape without the ones that it begins with."""
    shape = tuple(shape)
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape


def listed(kinds: Sequence[str]) -> str:
    """Returns "Mul (2 times)", or "MatMul and Square"."""
    count = collections.Counter(kinds)
    return " and ".join(
        kind if n == 1 else f"{kind} ({n} times)" for kind, n in count.items()
    )
