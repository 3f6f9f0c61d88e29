"""Products of a weight with what depends on the inputs, as einsums."""

import dataclasses
import math
import string
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class View:
    """A weight as it enters an operation: reshaped and transposed.

    Attributes:
        shape: The shape in which it enters.
        steps: What was done to it, in order: (True, the order of the axes) for
            a transpose, (False, the shape) for a reshape; both with the shape
            before.
    """

    shape: Shape
    steps: tuple[tuple[bool, Shape, Shape], ...] = ()

    def reshaped(self, shape: Shape) -> "View":
        """Returns the view after a reshape."""
        step = False, shape, self.shape
        return View(shape, (*self.steps, step))

    def transposed(self, order: Shape) -> "View":
        """Returns the view after a transpose."""
        shape = tuple(self.shape[i] for i in order)
        return View(shape, (*self.steps, (True, order, self.shape)))

    @property
    def is_flat(self) -> bool:
        """Whether the elements are in the order of the weight."""
        return not any(is_transpose for is_transpose, *_ in self.steps)

    def of(self, weight: tf.Tensor) -> tf.Tensor:
        """Returns the view of something shaped as the weight."""
        for is_transpose, to, _ in self.steps:
            change = tf.transpose if is_transpose else tf.reshape
            weight = change(weight, to)
        return weight

    def places(self) -> np.ndarray:
        """Returns where each element of the view is in the weight, flat."""
        places = np.arange(math.prod(self.shape))
        for is_transpose, to, before in self.steps:
            places = places.reshape(before)
            places = places.transpose(to) if is_transpose else places
        return places.reshape(self.shape)

    def back(self, view: tf.Tensor) -> tf.Tensor:
        """Undoes `of`."""
        for is_transpose, to, before in reversed(self.steps):
            if is_transpose:
                inverse = [to.index(i) for i in range(len(to))]
                view = tf.transpose(view, inverse)
            else:
                view = tf.reshape(view, before)
        return view


@dataclasses.dataclass(frozen=True)
class Contraction:
    """s = einsum("inputs,kernel->outputs"), a letter for each axis.

    With V = sum a g^T, by groups: the axes of the kernel that stand in inputs
    and outputs number the groups, those in the inputs alone are contracted,
    those in the outputs alone remain. Rows are the other axes of the outputs;
    other axes of the inputs are summed.
    """

    inputs: str
    kernel: str
    outputs: str

    def _of_kernel(self, in_inputs, in_outputs):
        return "".join(
            x
            for x in self.kernel
            if (x in self.inputs) is in_inputs
            and (x in self.outputs) is in_outputs
        )

    @property
    def groups(self) -> str:
        return self._of_kernel(True, True)

    @property
    def contracted(self) -> str:
        return self._of_kernel(True, False)

    @property
    def remaining(self) -> str:
        return self._of_kernel(False, True)

    @property
    def rows(self) -> str:
        free = set(self.outputs) - set(self.kernel)
        return "".join(x for x in self.inputs if x in free)

    def order(self) -> Shape:
        """Returns the axes of the kernel: of groups, contracted, remaining."""
        letters = self.groups + self.contracted + self.remaining
        return tuple(map(self.kernel.index, letters))

    def sizes(self, shape: Shape) -> tuple[int, int, int]:
        """Returns (groups, d_in, d_out) for the shape of the kernel."""
        size = dict(zip(self.kernel, shape))
        parts = self.groups, self.contracted, self.remaining
        groups, d_in, d_out = (math.prod(size[x] for x in p) for p in parts)
        return groups, d_in, d_out

    def is_understood(self, inputs: tf.TensorShape, kernel: Shape) -> bool:
        """Whether it is a linear map without diagonals or broadcast groups."""
        letters = self.inputs, self.kernel, self.outputs
        if any(len(set(x)) < len(x) for x in letters):
            return False
        size = dict(zip(self.inputs, inputs.as_list()))
        of_kernel = dict(zip(self.kernel, kernel))
        covered = set(self.groups + self.contracted + self.remaining)
        known = set(self.inputs) | set(self.kernel)
        return (
            covered == set(self.kernel)
            and set(self.outputs) <= known
            and all(size[x] == of_kernel[x] for x in self.groups)
        )

    def input_rows(self, x: tf.Tensor, groups: int, d_in: int) -> tf.Tensor:
        """Returns the rows a of the inputs, [groups, rows, d_in]."""
        x = _arranged(x, self.inputs, self.groups + self.rows, self.contracted)
        return tf.reshape(x, [groups, -1, d_in])

    def output_rows(self, x: tf.Tensor, groups: int, d_out: int) -> tf.Tensor:
        """Returns the rows of something shaped as s, [groups, rows, d_out]."""
        x = _arranged(x, self.outputs, self.groups + self.rows, self.remaining)
        return tf.reshape(x, [groups, -1, d_out])

    def mask_rows(self, mask: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor | None:
        """Returns the mask of the first axes of the inputs by rows, [rows, 1];
        None where these are not axes of rows."""
        rank = mask.shape.rank
        if rank > len(self.rows) or self.inputs[:rank] != self.rows[:rank]:
            return None
        size = dict(zip(self.inputs, tf.unstack(tf.shape(inputs))))
        more = self.rows[rank:]
        shape = tf.concat([tf.shape(mask), [1] * len(more)], axis=0)
        mask = tf.reshape(tf.cast(mask, inputs.dtype), shape)
        whole = [size[x] for x in self.rows]
        return tf.reshape(tf.broadcast_to(mask, whole), [-1, 1])


def _arranged(x, letters, first, last):
    """Returns x with its axes in this order, the others summed."""
    wanted = first + last
    summed = [i for i, name in enumerate(letters) if name not in wanted]
    if summed:
        x = tf.reduce_sum(x, summed)
        letters = "".join(name for name in letters if name in wanted)
    if letters != wanted:
        x = tf.transpose(x, [letters.index(name) for name in wanted])
    return x


def contraction(
    kind: str,
    attributes: Mapping,
    ranks: Sequence[int],
    position: int,
) -> Contraction | None:
    """Returns the contraction that an operation of two tensors is.

    Args:
        kind: "MatMul", "BatchMatMulV2", "BatchMatMulV3" or "Einsum".
        attributes: Of the operation.
        ranks: Of its operands.
        position: Which of them the kernel is.
    """
    if kind == "Einsum":
        terms = _einsum(attributes["equation"], ranks)
    else:
        terms = _matmul(attributes, ranks)
    if terms is None:
        return None
    *operands, outputs = terms
    return Contraction(operands[1 - position], operands[position], outputs)


def _matmul(attributes, ranks):
    def is_set(*names):
        return any(attributes.get(name) for name in names)

    batch = string.ascii_uppercase[: max(ranks) - 2]
    last = (
        "ji" if is_set("transpose_a", "adj_x") else "ij",
        "kj" if is_set("transpose_b", "adj_y") else "jk",
    )
    operands = [
        batch[len(batch) - rank + 2 :] + x for rank, x in zip(ranks, last)
    ]
    return *operands, batch + "ik"


def _einsum(equation, ranks):
    """Spells the axes out that dots stand for, the last ones common."""
    left, outputs = equation.replace(" ", "").split("->")
    operands = left.split(",")
    used = set(equation)
    spare = [x for x in string.ascii_letters if x not in used]
    counts = [
        rank - len(x.replace("...", "")) if "..." in x else 0
        for x, rank in zip(operands, ranks)
    ]
    most = max(counts)
    if len(operands) != 2 or most > len(spare):
        return None
    dots = "".join(spare[:most])
    spelled = [
        x.replace("...", dots[most - n :]) for x, n in zip(operands, counts)
    ]
    return *spelled, outputs.replace("...", dots)
