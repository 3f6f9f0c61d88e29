"""FLOPs of the matrix products and convolutions of a graph.

A product of an m x k and a k x n matrix counts 2 m n k, a convolution the
products of its patches, and so do the gradients of both. All else (sums,
normalizations, activations, what is copied) counts nothing.
"""

import math
import types
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from tfkfac import tracing

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_LOOPS = ("While", "StatelessWhile")
# How often their bodies run is not known from the graph. Loops of a constant
# `maximum_iterations` are taken to run as often.
_BRANCHES = ("If", "StatelessIf")
_CONTROL_FLOW = (
    *_LOOPS, *_BRANCHES, "Case", "StatelessCase", "XlaWhile", "XlaIf",
)  # fmt: skip


def count(
    operations: Iterable[tf.Operation],
    outside: Mapping[str, tf.Tensor] = types.MappingProxyType({}),
) -> tuple[int, list[str]]:
    """Returns (FLOPs, what is not counted), bodies of functions included.

    Args:
        operations: Of a graph, with static shapes.
        outside: For the body of a function, by the name of an input, what that
            stands for.

    Returns:
        The FLOPs, and the names of loops and branches and of products whose
        shape is not known. Branches that are rarely taken count nothing.
    """
    total, left_out = 0, []
    for op in operations:
        body, times = _body(op, outside)
        if body is not None:
            inner = op.graph._get_function(body).graph
            given = [_source(t, outside) for t in op.inputs]
            names = [t.op.name for t in getattr(inner, "inputs", ())]
            flops, more = count(inner.get_operations(), dict(zip(names, given)))
            total += times * flops
            left_out += more
        elif op.type in _BRANCHES and tracing.RARELY in op.name:
            continue
        elif op.type in _CONTROL_FLOW:
            left_out.append(op.name)
        elif op.type in _PRODUCTS:
            try:
                total += 2 * _PRODUCTS[op.type](op)
            except TypeError:  # A side is None.
                left_out.append(op.name)
    return total, left_out


def _body(op: tf.Operation, outside) -> tuple[str | None, int]:
    """Returns the function that an operation runs, and how often, or None."""
    if op.type in _CALLS:
        return op.get_attr("f").name, 1
    if op.type in _LOOPS and len(op.inputs) > 1:
        most = op.inputs[1]  # After the counter, of a `tf.while_loop`.
        most = _source(most, outside)
        if "maximum_iterations" in most.op.name or most.op.type == "Max":
            times = _static_value(most)
            if times is not None and times >= 0:
                return op.get_attr("body").name, int(times)
    return None, 0


def _source(tensor: tf.Tensor, outside) -> tf.Tensor:
    """Returns what a tensor is that functions only hand on."""
    while True:
        if tensor.op.name in outside:
            return outside[tensor.op.name]
        if tensor.op.type not in _CALLS:
            return tensor
        inner = tensor.op.graph._get_function(tensor.op.get_attr("f").name)
        result = inner.graph.outputs[tensor.value_index]
        names = [t.op.name for t in inner.graph.inputs]
        if result.op.name not in names:
            return tensor
        tensor = tensor.op.inputs[names.index(result.op.name)]


def _static_value(tensor: tf.Tensor):
    """Returns the value of a constant, or of the largest one of a constant, as
    recurrent layers give the number of their steps; else None."""
    if tensor.op.type != "Max":
        return tf.get_static_value(tensor)
    value = tf.get_static_value(tensor.op.inputs[0])
    return None if value is None else value.max()


def _sides(tensor: tf.Tensor) -> list[Any]:
    return tensor.shape.as_list() if tensor.shape.rank is not None else [None]


def _size(tensor: tf.Tensor) -> int:
    return math.prod(_sides(tensor))


def _matmul(op) -> int:
    name = "transpose_a" if op.type == "MatMul" else "adj_x"
    sides = _sides(op.inputs[0])
    return _size(op.outputs[0]) * sides[-2 if op.get_attr(name) else -1]


def _einsum(op) -> int:
    """Of one or two operands; one by itself is no product."""
    if len(op.inputs) != 2:
        return 0
    equation = op.get_attr("equation").decode().replace("...", ".")
    left, right = equation.split("->")
    summed = {}
    for labels, tensor in zip(left.split(","), op.inputs):
        sides, dots = _sides(tensor), labels.find(".")
        for i, label in enumerate(labels):
            if label != "." and label not in right:
                # What the dots stand for comes before, if they do.
                after = 0 <= dots < i
                summed[label] = sides[i - len(labels) if after else i]
    return _size(op.outputs[0]) * math.prod(summed.values())


def _convolution(op) -> int:
    return _size(op.outputs[0]) * math.prod(_sides(op.inputs[1])[:-1])


def _convolution_to_input(op) -> int:
    return _size(op.inputs[2]) * math.prod(_sides(op.inputs[1])[:-1])


def _convolution_to_kernel(op) -> int:
    return _size(op.inputs[2]) * math.prod(_sides(op.outputs[0])[:-1])


def _depthwise(op) -> int:
    return _size(op.outputs[0]) * math.prod(_sides(op.inputs[1])[:-2])


def _depthwise_to_input(op) -> int:
    return _size(op.inputs[2]) * math.prod(_sides(op.inputs[1])[:-2])


def _depthwise_to_kernel(op) -> int:
    return _size(op.inputs[2]) * math.prod(_sides(op.outputs[0])[:-2])


_PRODUCTS = {
    "MatMul": _matmul,
    "BatchMatMul": _matmul,
    "BatchMatMulV2": _matmul,
    "BatchMatMulV3": _matmul,
    "Einsum": _einsum,
    "Conv2D": _convolution,
    "Conv2DBackpropInput": _convolution_to_input,
    "Conv2DBackpropFilter": _convolution_to_kernel,
    "Conv3D": _convolution,
    "Conv3DBackpropInputV2": _convolution_to_input,
    "Conv3DBackpropFilterV2": _convolution_to_kernel,
    "DepthwiseConv2dNative": _depthwise,
    "DepthwiseConv2dNativeBackpropInput": _depthwise_to_input,
    "DepthwiseConv2dNativeBackpropFilter": _depthwise_to_kernel,
}
