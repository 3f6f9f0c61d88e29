"""Where a layer's examples and positions are in what becomes of its inputs."""

from collections.abc import Mapping, Sequence

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
# Operations on each element, as far as they are common; in doubt, no mask.
_ELEMENTWISE = {
    "Add",
    "AddV2",
    "BiasAdd",
    "Cast",
    "Elu",
    "Erf",
    "Exp",
    "Identity",
    "LeakyRelu",
    "Log",
    "Maximum",
    "Minimum",
    "Mul",
    "Neg",
    "Pow",
    "RealDiv",
    "Relu",
    "Relu6",
    "Rsqrt",
    "SelectV2",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Sqrt",
    "Square",
    "Sub",
    "Tanh",
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


def _is_first(kind, attributes, inputs, i) -> bool:
    """Whether the first axis of an operand is that of the result."""
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
    return place if kind in _ELEMENTWISE else None


def _place_of_reshaped(place, before, after, inputs) -> str | None:
    if before[-1] is None or before[-1] != after[-1]:
        return None
    if place == AXES and after.rank == 2:
        return ROWS
    same = after.rank == inputs.rank and after[:-1].is_compatible_with(
        inputs[:-1]
    )
    return AXES if same else None
