"""The time of a step on many GPUs, from counts and a few constants.

Used by `tools.scaling_benchmark`. A step of strategy="owner" takes

    2 (3 F + S) / f       forward, backward (F multiplications), factors (S)
    2 I / i + 2 P / f     inversions, U: those of the rank with the most
    sum of collectives    k (N - 1) latencies + bytes that a rank sends / b

with k = 1 for an all-to-all or all-gather and 2 for an all-reduce, all on N
ranks. Forward and backward passes take as long on any number of ranks, as each
has the same number of images. Nothing overlaps.
"""

import dataclasses
import math
from collections.abc import Sequence

import keras

from tfkfac.distributed import assignment


@dataclasses.dataclass(frozen=True)
class Machine:
    """The constants of the prediction.

    Attributes:
        flops: f, of convolutions and matrix products, per second.
        inversion_flops: i, of inversions, per second.
        bandwidth: b, in bytes per second, of a rank.
        latency: Of one message, in seconds.
    """

    flops: float = 7.8e12
    inversion_flops: float = 1e12
    bandwidth: float = 6.25e9
    latency: float = 2e-5


def positions(layer: keras.layers.Layer) -> int:
    """Returns the number of output positions of an example.

    Args:
        layer: One of a functional model, called once, channels last.
    """
    return math.prod(layer.output.shape[1:-1])


def forward_cost(blocks: Sequence) -> float:
    """Returns F, the multiplications of a forward pass for an example.

    Args:
        blocks: Those of a functional model.
    """
    total = 0
    for block in blocks:
        kernel = getattr(block.layer, "kernel", None)
        if kernel is not None:
            total += positions(block.layer) * math.prod(kernel.shape)
    return total


def statistics_cost(blocks: Sequence) -> float:
    """Returns S without a further backward pass, for an example.

    Of each factor the products of patches, or gradients, by themselves.
    """
    return sum(
        positions(block.layer) * f.groups * (f.dim if f.diagonal else f.dim**2)
        for block in blocks
        for f in block.factors
    )


def collective(sent: float, rounds: int, machine: Machine) -> float:
    """Returns its time: `rounds` messages, and `sent` bytes of a rank."""
    return rounds * machine.latency + sent / machine.bandwidth


def reduction(lengths: Sequence[float], machine: Machine) -> float:
    """Returns the time of the sum of parts of these numbers of float32."""
    ranks = len(lengths)
    if assignment.scatters(lengths):
        return collective(4 * max(lengths) * (ranks - 1), ranks - 1, machine)
    sent = 2 * 4 * sum(lengths) * (ranks - 1) / ranks
    return collective(sent, 2 * (ranks - 1), machine)


def predict(
    items: Sequence[assignment.Item],
    forward: float,
    statistics: float,
    ranks: int,
    machine: Machine,
    batch_size: int,
    factor_update_period: int = 1,
    inverse_update_period: int = 1,
    sampled: bool = False,
) -> dict[str, float]:
    """Returns the mean seconds of a step by stage.

    Args:
        items: What the ranks share out.
        forward: F of an example.
        statistics: S of an example.
        ranks: N.
        machine: The constants.
        batch_size: The examples of a rank.
        factor_update_period, inverse_update_period: In steps.
        sampled: Whether a further backward pass is taken for the factors.
    """
    owners = assignment.assign(items, ranks)
    loads = assignment.loads(items, owners, ranks)

    def most(resource):
        return max(load[resource] for load in loads)

    gradient = [load["gradient"] for load in loads]
    of_factors = [load["statistics"] for load in loads]
    gathered = 4 * (sum(gradient) - min(gradient))
    if sampled:
        statistics += 2 * forward
    often = 1 / factor_update_period
    stages = {
        "forward_and_backward": 6 * forward * batch_size / machine.flops,
        "factors": often * 2 * statistics * batch_size / machine.flops,
        "inversion": 2
        * most("inversion")
        / machine.inversion_flops
        / inverse_update_period,
        "preconditioning": 2 * most("preconditioning") / machine.flops,
        "communication": reduction(gradient, machine)
        + often * reduction(of_factors, machine)
        + collective(gathered, ranks - 1, machine)
        if ranks > 1
        else 0.0,
    }
    return stages | {"step": sum(stages.values())}


def verdicts(steps: dict[int, float], layers: dict[str, int]) -> list[str]:
    """Returns how the prediction compares with Osawa et al. 2019, section 5.2.

    Args:
        steps: Seconds of a step, by the number of ranks; with 1, 64, 256 and
            1,024 among them.
        layers: The number of layers with a block, by kind.
    """
    faster = steps[1] / steps[64]
    slower = steps[1024] / steps[256]
    count = sum(layers.values())
    kinds = " + ".join(f"{n} {kind}" for kind, n in layers.items())

    def says(agrees):
        return "agrees" if agrees else "DISAGREES"

    return [
        f"107 layers: {count} = {kinds} ({says(count == 107)})",
        f"superlinear to 64 GPUs, 2.31 times as fast a step: {faster:.2f} "
        f"times ({says(faster > 1)})",
        f"degradation after 256: the step on 1,024 takes {slower:.2f} times "
        f"that on 256 ({says(slower > 1)})",
    ]
