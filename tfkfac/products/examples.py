"""Where a layer's examples and positions are in what becomes of its inputs."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

_REORDERING = (
    "BatchTo",
    "Gather",
    "Reverse",
    "Scatter",
    "Segment",
    "SpaceTo",
    "Unique",
    "Where",
)
AXES, ROWS = "axes", "rows"
# Where operations have the axes that they act along: the number of an operand,
# or the name of an attribute.
_AXES: dict[str, int | str] = {
    "All": 1,
    "Any": 1,
    "ConcatV2": -1,
    "Max": 1,
    "Mean": 1,
    "Min": 1,
    "Pack": "axis",
    "Prod": 1,
    "Split": 0,
    "SplitV": 2,
    "Sum": 1,
    "Unpack": "axis",
}
# Operations on each position, as far as they are common.
_ON_POSITIONS = {
    "Abs",
    "Add",
    "AddV2",
    "Atan",
    "BiasAdd",
    "Cast",
    "Ceil",
    "CheckNumerics",
    "Cos",
    "Elu",
    "Erf",
    "Erfc",
    "Exp",
    "Expm1",
    "Floor",
    "Identity",
    "IdentityN",
    "IsFinite",
    "LeakyRelu",
    "Log",
    "Log1p",
    "LogSoftmax",
    "Maximum",
    "Minimum",
    "Mul",
    "Neg",
    "Pow",
    "PreventGradient",
    "RealDiv",
    "Reciprocal",
    "Relu",
    "Relu6",
    "Round",
    "Rsqrt",
    "SelectV2",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softmax",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Square",
    "SquaredDifference",
    "StopGradient",
    "Sub",
    "Tanh",
    "Xlogy",
}


def entries(
    kind: str,
    attributes: Mapping,
    inputs: Sequence[tf.Tensor],
    known: Sequence[int | None],
    output: tf.Tensor,
) -> int | None:
    """Returns how many entries of the first axis are of each example.

    It is 1 where the first axis is that of the examples, and T where the axes
    of examples and of T positions were made one. None where it is not known:
    what is in doubt has no block.

    Args:
        kind: The type of the operation.
        attributes: Its attributes.
        inputs: What it takes.
        known: The same of each of these; 0 of what has no examples.
        output: What it returns.
    """
    if any(word in kind for word in _REORDERING):
        return None
    having = [i for i, n in enumerate(known) if n != 0 and inputs[i].shape.rank]
    if not having or output.shape.rank in (None, 0):
        return None
    if kind in ("Reshape", "ExpandDims", "Squeeze"):
        return _reshaped(inputs[0].shape, known[0], output.shape)
    if not all(_is_first(kind, attributes, inputs, i) for i in having):
        return None
    counts = {known[i] for i in having}
    return counts.pop() if len(counts) == 1 else None


def _reshaped(before, count, after) -> int | None:
    inner, last = before[1:].num_elements(), after[1:].num_elements()
    if not count or not inner or not last or (count * inner) % last:
        return None
    return count * inner // last


def _axes_of(kind, attributes, inputs) -> list[int] | None:
    """Returns the axes that an operation of `_AXES` acts along."""
    place = _AXES[kind]
    value = attributes[place] if isinstance(place, str) else inputs[place]
    axes, new = tf.get_static_value(value), int(kind == "Pack")
    if axes is None:
        return None
    rank = inputs[1 if kind == "Split" else 0].shape.rank + new
    return [int(axis) % rank for axis in np.ravel(axes)]


def _is_first(kind, attributes, inputs, i) -> bool:
    """Whether the first axis of an operand is that of the result."""
    if kind in _AXES:
        axes = _axes_of(kind, attributes, inputs)
        return axes is not None and 0 not in axes
    if kind == "Transpose":
        order = tf.get_static_value(inputs[1])
        return order is not None and order[0] == 0
    if kind == "Einsum":
        left, right = attributes["equation"].replace(" ", "").split("->")
        return left.split(",")[i][:1] == right[:1]
    if kind == "MatMul":
        return i == 0 and not attributes.get("transpose_a")
    if kind.startswith("BatchMatMul"):
        return inputs[i].shape.rank == max(x.shape.rank for x in inputs)
    return True


def positions(
    kind: str,
    attributes: Mapping,
    inputs: Sequence[tf.Tensor],
    known: Sequence[str | None],
    output: tf.Tensor,
    of: tf.Tensor,
) -> str | None:
    """Returns where the positions of the layer's inputs are in an output.

    It is `AXES` where the axes before the last are those of the inputs, `ROWS`
    where these were made one, None where it is not known.

    Args:
        kind, attributes, inputs, output: As of `entries`.
        known: The same of each of `inputs`.
        of: The inputs of the layer, [batch, *positions, channels].
    """
    having = [i for i, place in enumerate(known) if place]
    places = {known[i] for i in having}
    if len(places) != 1 or output.shape.rank is None:
        return None
    (place,), x = places, inputs[having[0]]
    if kind == "IdentityN":  # As of functions with a gradient of their own.
        same = all(inputs[i].shape == output.shape for i in having)
        return place if same else None
    if kind in _AXES:
        last = _axes_of(kind, attributes, inputs) == [x.shape.rank - 1]
        return place if last and output.shape.rank == x.shape.rank else None
    if kind == "Reshape":
        return _place_of_reshaped(place, x.shape, output.shape, of.shape)
    if output.shape.rank != x.shape.rank:
        return None
    if kind == "Transpose":
        order = tf.get_static_value(inputs[1])
        kept = order is not None and list(order) == list(range(len(order)))
        return place if kept else None
    if kind == "Einsum":
        left, right = attributes["equation"].replace(" ", "").split("->")
        letters = left.split(",")[having[0]]
        kept = len(having) == 1 and letters[:-1] == right[:-1]
        return place if kept else None
    if "MatMul" in kind:
        moved = attributes.get("transpose_a") or attributes.get("adj_x")
        return place if having == [0] and not moved else None
    return place if kind in _ON_POSITIONS else None


def _place_of_reshaped(place, before, after, inputs) -> str | None:
    if before[-1] is None or before[-1] != after[-1]:
        return None
    if place == AXES and after.rank == 2:
        return ROWS
    same = after.rank == inputs.rank and after[:-1].is_compatible_with(
        inputs[:-1]
    )
    return AXES if same else None
