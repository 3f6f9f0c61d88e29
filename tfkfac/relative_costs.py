"""What the work of K-FAC costs beside a gradient step, in FLOPs.

Counted from the shapes of what was recorded of a step: 6 R n for a kernel of n
elements that R rows are multiplied by (forward and backward pass), R (d_A^2 +
d_G^2) for the factors, 2 d^3 for an inverse. `tfkfac.plan` counts the products
of the graph itself, which takes a trace of its own; of convolutions, whose
factors take less than the products of their patches, this counts too much.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tfkfac.blocks import CurvatureBlock, LayerCall

_SAMPLED_PASS = 1 / 3  # Of a gradient step: no product for the kernels.
_INVERSION = 2  # Of d^3.


class RelativeCosts(NamedTuple):
    """Costs of one step of data.

    Attributes:
        gradient: The FLOPs of the gradient of an example; 0 where none could
            be counted.
        factors: Of a factor update, over those of the gradient.
    """

    gradient: float
    factors: float

    def inversions(self, blocks: Sequence[CurvatureBlock], examples):
        """Returns the cost of inverting all blocks, over the gradient step.

        Args:
            blocks: All blocks.
            examples: Those of the update, on all ranks; a float64 scalar.
        """
        if not self.gradient:
            return 1.0
        cubes = sum(
            f.groups * f.dim**3
            for block in blocks
            for f in block.factors
            if not f.diagonal
        )
        return _INVERSION * cubes / self.gradient / examples


def of_step(
    calls: Mapping[CurvatureBlock, Sequence[LayerCall]], sampled: bool
) -> RelativeCosts:
    """Returns the costs of a step by the static shapes of its calls.

    Args:
        calls: Those of each block; sides that are not known count 1.
        sampled: Whether the statistics take a backward pass of their own.
    """
    gradient = factors = 0.0
    for block, of_block in calls.items():
        if len(block.factors) < 2:
            continue
        A, G = block.factors[0], block.factors[-1]
        outputs = G.groups * G.dim
        elements = sum(math.prod(v.shape) for v in block.variables)
        for call in of_block:
            shape = call.pre_activation.shape
            sides = shape.as_list()[1:] if shape.rank else []
            rows = math.prod(side or 1 for side in sides) / outputs
            if call.inputs.dtype.is_floating:  # Else rows are looked up.
                gradient += 6 * rows * elements
            factors += rows * sum(
                f.groups * f.dim * (1 if f.diagonal else f.dim) for f in (A, G)
            )
    if not gradient:
        return RelativeCosts(0.0, 1.0)
    return RelativeCosts(gradient, factors / gradient + sampled * _SAMPLED_PASS)
