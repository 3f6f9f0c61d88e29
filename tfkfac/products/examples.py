"""Where the examples of a batch are in what becomes of it."""

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
